"""`--limit`, `--tags`, `--skip-tags`: narrow what a run does; they never widen what is removed."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from mikrom_reconcile.core.inventory import Inventory
from mikrom_reconcile.core.model.plan import VMChange
from mikrom_reconcile.core.patterns import PatternError, select
from mikrom_reconcile.core.specs import Specs


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What to act on. `limit` is a pattern of hosts, groups and VM names; None is everything."""

    limit: str | None = None
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()


EVERYTHING = Selection()


def selected(changes: list[VMChange], selection: Selection, specs: Specs) -> tuple[list[VMChange], tuple[str, ...]]:
    """The changes that are selected, and a warning that counts the others. Raises UsageError for a bad limit."""
    if selection == EVERYTHING:
        return changes, ()
    names = _limited(changes, selection.limit, specs)
    fleets = {fleet.name for fleet in specs.fleets if _tagged(fleet.tags, selection)}
    if not selection.tags:  # fleets that vanished have no tags: only a wanted tag leaves them out
        fleets |= {change.fleet for change in changes} - {fleet.name for fleet in specs.fleets}
    kept = [change for change in changes if change.name in names and change.fleet in fleets]
    left_out = len(changes) - len(kept)
    return kept, (f"{left_out} more changes are outside --limit, --tags or --skip-tags",) if left_out else ()


def _tagged(tags: tuple[str, ...], selection: Selection) -> bool:
    wanted = not selection.tags or not set(tags).isdisjoint(selection.tags)
    return wanted and set(tags).isdisjoint(selection.skip_tags)


def _limited(changes: list[VMChange], limit: str | None, specs: Specs) -> frozenset[str]:
    everything = frozenset(change.name for change in changes)
    if limit is None:
        return everything
    inventory = specs.inventory or Inventory()
    known: dict[str, set[str]] = defaultdict(set)
    for fleet in specs.fleets:
        known[fleet.name] = set()
    for host in inventory.hosts:
        known[host] = set()
    members = inventory.members()
    for group in members:
        known[group] = set()
    for change in changes:
        known[change.fleet].add(change.name)
        known[change.host].add(change.name)
        for group, hosts in members.items():
            if change.host in hosts:
                known[group].add(change.name)
    try:
        return frozenset(select(limit, everything, {name: frozenset(vms) for name, vms in known.items()}))
    except PatternError:
        return frozenset()  # names that need nothing are not among the changes

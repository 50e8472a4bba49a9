"""`--limit`, `--tags`, `--skip-tags`: narrow what a run does; they never widen what is removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from mikrom_reconcile.core.inventory import Inventory
from mikrom_reconcile.core.model.desired import DesiredState, DesiredVM
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import VMChange
from mikrom_reconcile.core.observed import Sight
from mikrom_reconcile.core.patterns import PatternError, select
from mikrom_reconcile.core.specs import Specs


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """What to act on. `limit` is a pattern of hosts, groups and VM names; None is everything."""

    limit: str | None = None
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()


EVERYTHING = Selection()


class Selected(msgspec.Struct, frozen=True, kw_only=True):
    """The changes to act on, how many others there are, and the term of the limit that names nothing, "" if none."""

    changes: list[VMChange]
    left_out: int = 0
    unmatched: str = ""


def selected(
    changes: list[VMChange], selection: Selection, specs: Specs, desired: DesiredState, sight: Sight
) -> Selected:
    """The changes that are selected; none at all when a term of the limit names nothing."""
    if selection == EVERYTHING:
        return Selected(changes=changes)
    kept = changes
    if selection.limit is not None:
        rows = (row for rows in sight.own.values() for row in rows)
        try:
            names = limited(selection.limit, (*desired.vms, *rows), specs)
        except PatternError as error:
            return Selected(changes=[], left_out=len(changes), unmatched=error.term)
        kept = [change for change in kept if change.name in names]
    fleets = {fleet.name for fleet in specs.fleets if _tagged(fleet.tags, selection)}
    if not selection.tags:  # fleets that vanished have no tags: only a wanted tag leaves them out
        fleets |= {change.fleet for change in changes} - {fleet.name for fleet in specs.fleets}
    kept = [change for change in kept if change.fleet in fleets]
    return Selected(changes=kept, left_out=len(changes) - len(kept))


def limited(limit: str, vms: Iterable[DesiredVM | ObservedVM], specs: Specs) -> frozenset[str]:
    """The names of those `vms` that `limit` selects. Raises PatternError for a term that names nothing at all."""
    inventory = specs.inventory or Inventory()
    by_host: dict[str, set[str]] = defaultdict(set, {host: set() for host in inventory.hosts})
    by_fleet: dict[str, set[str]] = defaultdict(set, {fleet.name: set() for fleet in specs.fleets})
    for vm in vms:
        by_host[vm.host].add(vm.name)
        by_fleet[vm.fleet].add(vm.name)
    groups = {group: set().union(*(by_host[host] for host in hosts)) for group, hosts in inventory.members.items()}
    known = {name: frozenset(names) for name, names in (groups | by_host | by_fleet).items()}
    return frozenset(select(limit, frozenset().union(*known.values()), known))


def _tagged(tags: tuple[str, ...], selection: Selection) -> bool:
    wanted = not selection.tags or not set(tags).isdisjoint(selection.tags)
    return wanted and set(tags).isdisjoint(selection.skip_tags)

"""What is selected by `--limit`, `--tags` and `--skip-tags`: a word that matches nothing is a mistake."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.plan import RunOverrides
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.variables import BUILT_IN_NAMES, names_in
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.planning.context import Draft, PlanContext
from mikrom_reconcile.core.specs.inventory import Inventory, PatternError, select as names_selected_by, terms
from mikrom_reconcile.core.specs.load import Specs, shared_lookups

Whereabouts = tuple[str, str, str]
"""A VM that may be selected: its name, a host that it is on or goes to ("" for none), its fleet."""


def select(draft: Draft, context: PlanContext) -> Draft:
    """Leaves out the changes that are not selected; all of them where the selection is a mistake."""
    overrides = context.overrides
    if overrides.limit is None and not (overrides.tags or overrides.skip_tags):
        return draft
    try:
        chosen = _chosen(overrides, context.given.specs, frozenset(_whereabouts(draft, context)))
    except UsageError as error:
        return replace(draft, changes=[], left_out=draft.changes, selected=0, unmatched=str(error))
    kept = [change for change in draft.changes if (change.name, change.fleet) in chosen]
    others = [change for change in draft.changes if (change.name, change.fleet) not in chosen]
    return replace(draft, changes=kept, left_out=others, selected=len({name for name, _ in chosen}))


def _whereabouts(draft: Draft, context: PlanContext) -> Iterator[Whereabouts]:
    """Every VM that a selection may name: wanted, seen, or remembered on a host that does not answer."""
    view, remembered = context.view, context.given.placements
    yield from ((vm.name, "", vm.fleet.name) for vm in context.given.unplaced)
    yield from ((vm.name, vm.host, vm.fleet) for vm in draft.desired)
    yield from ((name, row.host, row.fleet) for name, rows in view.own.items() for row in rows)
    for name, host in remembered.vms.items():
        if host in view.unreachable:
            yield name, host, remembered.fleet_of(name)


def limited(limit: str, vms: Iterable[Whereabouts], specs: Specs | None) -> frozenset[str]:
    """The names of those `vms` that `limit` selects, by groups only where there are specs. Raises UsageError."""
    words = [word for _, word in terms(limit)]
    if not all(word.removeprefix("~") for word in words):
        raise UsageError(f"--limit: an empty word selects nothing, and one is in {shown(limit)}; write all for all")
    inventory = specs.inventory if specs else Inventory()
    fleets: dict[str, set[str]] = defaultdict(set, {fleet.name: set() for fleet in (specs.fleets if specs else ())})
    hosts: dict[str, set[str]] = defaultdict(set, {host: set() for host in inventory.hosts})
    for name, host, fleet in vms:
        fleets[fleet].add(name)
        if host:
            hosts[host].add(name)
    groups = {group: set().union(*(hosts[host] for host in members)) for group, members in inventory.members.items()}
    kinds = {"fleet": fleets, "host": hosts, "group": groups}
    names = frozenset().union(*fleets.values())
    known = {name: frozenset(inside) for kind in kinds.values() for name, inside in kind.items()}
    try:
        found = names_selected_by(limit, names, known, "VM, host, group or fleet")
    except PatternError as error:
        hint = f"; {nearest(error.term, (*known, *sorted(names)))}" if error.term else ""
        raise UsageError(f"--limit: {error}{hint}") from None
    for word in words:
        meant = {kind: inside[word] for kind, inside in kinds.items() if word in inside}
        if word not in names and any(inside != known[word] for inside in meant.values()):
            raise UsageError(f"--limit: {shown(word)} is a {' and a '.join(meant)} of different VMs; name the VMs")
    if not found and any(sign for sign, _ in terms(limit)):
        raise UsageError(f"--limit: {shown(limit)} leaves no VM")
    return frozenset(found)


def refuse_unknown(option: str, words: Iterable[str], known: Iterable[str], why: str) -> None:
    """Raises UsageError for the first word that is not known; `why` says what it is not."""
    names = sorted(known)
    for word in words:
        if word not in names:
            hint = nearest(word, names)
            raise UsageError(f"{option}: {why.format(shown(word))}{hint and f'; {hint}'}")


def refuse_unread(specs: Specs) -> None:
    """Raises UsageError for a variable of the command line that nothing in the specs looks up."""
    if not specs.extra_vars:
        return
    found = shared_lookups(specs) | names_in([fleet.document.body["spec"] for fleet in specs.fleets])
    read = {name.partition(".")[0] for name in found} - BUILT_IN_NAMES
    refuse_unknown("-e", specs.extra_vars, read, "nothing in these specs looks {} up")


def _chosen(selection: RunOverrides, specs: Specs, vms: frozenset[Whereabouts]) -> set[tuple[str, str]]:
    """Names and fleets of the VMs that are selected; fleets that vanished have no tags that anybody knows."""
    fleets = {fleet for _, _, fleet in vms}
    if selection.tags or selection.skip_tags:
        known = {tag for fleet in specs.fleets for tag in fleet.tags}
        refuse_unknown("--tags", selection.tags, known, "no fleet has the tag {}")
        refuse_unknown("--skip-tags", selection.skip_tags, known, "no fleet has the tag {}")
        wanted, unwanted = set(selection.tags), set(selection.skip_tags)
        left = (fleet for fleet in specs.fleets if unwanted.isdisjoint(fleet.tags))
        fleets = {fleet.name for fleet in left if not (wanted and wanted.isdisjoint(fleet.tags))}
        if not fleets:
            raise UsageError("--tags and --skip-tags leave no fleet")
    tagged = {(name, fleet) for name, _, fleet in vms if fleet in fleets}
    if selection.limit is None:
        return tagged
    names = limited(selection.limit, vms, specs)
    both = {(name, fleet) for name, fleet in tagged if name in names}
    if names and tagged and not both:
        raise UsageError("--limit, --tags and --skip-tags together leave no VM")
    return both

"""What becomes of a rollout: people promote or abort it, and what has failed goes back. Its VMs' records keep it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Halt
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import RunOverrides, VMChange
from mikrom_reconcile.core.planning.context import Draft, PlanContext, ProjectView
from mikrom_reconcile.core.planning.guards import as_recorded
from mikrom_reconcile.core.planning.rules import DiffInput, judge

ABORTED = "a person has aborted it"
_NOTHING = {
    "promote": "fleet {} has no healthy canary that waits to be promoted",
    "abort": "nothing of fleet {} is being rolled out, nothing has begun, or it is aborted",
}


def has_ended(seen: ObservedVM) -> bool:
    """Whether its record says that already."""
    return seen.halt is not None and seen.halt.spec_digest == seen.spec_digest


def noted(seen: ObservedVM, rule: str, reason: str, **said: Any) -> VMChange:
    """What a person has said of a rollout, for the record of one of its VMs."""
    case = DiffInput(desired=replace(as_recorded(seen, seen.state, seen.policy), **said), observed=seen)
    return replace(case.change("update", reason), rule=rule)


def with_words(draft: Draft, words: Iterable[VMChange]) -> Draft:
    """The draft with these changes, each instead of another one of its VM or of none."""
    left = {word.name: word for word in words}
    changes = [left.pop(change.name, change) for change in draft.changes]
    fewer = Counter(draft.unchanged)
    fewer.subtract(word.host for word in left.values())
    changes = sorted([*changes, *left.values()], key=lambda change: (change.name, change.host))
    return replace(draft, changes=changes, unchanged=dict(+fewer))


def unheard(overrides: RunOverrides, words: Iterable[VMChange], fleets: Iterable[str]) -> str:
    """Why a word of a person means nothing, "" if all of them do."""
    spoken = {(word.rule, word.fleet) for word in words}
    asked = [(rule, fleet) for rule in _NOTHING for fleet in getattr(overrides, rule)]
    if unknown := [fleet for _, fleet in asked if fleet not in fleets]:
        return f"the specs have no fleet {unknown[0]}"
    return next((_NOTHING[rule].format(fleet) for rule, fleet in asked if (rule, fleet) not in spoken), "")


def rolls(change: VMChange) -> bool:
    """Whether the VM is to be brought to another spec, and not only back to its own or to another host."""
    if change.rule == "misplaced":
        return not (change.desired and change.observed and change.desired.spec_digest == change.observed.spec_digest)
    return not {"restart", "replace"}.isdisjoint(field.impact for field in change.fields)


def as_it_was(change: VMChange) -> VMChange | None:
    """A repair with the spec that the VM had, not with one that has failed; None where that is no way."""
    seen, desired = change.observed, change.desired
    is_repair = change.kind in {"start", "restart", "replace"} and change.fields
    if not is_repair or seen is None or desired is None or seen.phase == "crash_loop":
        return None
    was = as_recorded(seen, desired.state, seen.policy)
    verdict = judge(DiffInput(desired=was, observed=seen))
    repair = verdict if isinstance(verdict, VMChange) else replace(change, fields=(), desired=was)
    return replace(repair, reasons=(*repair.reasons, "with the spec that it had, because the new one has failed"))


def may_go_back(name: str, context: PlanContext) -> bool:
    """Whether this run may bring a fleet back: one about a part, that only tells or is held leaves that to the next."""
    wish = context.overrides
    tells = wish.drift_mode and "report" in {wish.drift_mode, context.fleets[name].drift.mode}
    is_frozen = context.freezes and not wish.override_freeze
    return not (tells or is_frozen or wish.limit is not None or wish.tags or wish.skip_tags)


def reverts(vms: Mapping[str, DesiredVM], view: ProjectView, why: str) -> Iterator[VMChange]:
    """What brings VMs back, and lets their records say that they were at what is wanted, and why they went back."""
    cases = (DiffInput(desired=_as_before(it, view, why), observed=view.own[name][0]) for name, it in vms.items())
    for verdict in [it for it in map(judge, cases) if isinstance(it, VMChange)]:
        others = (reason for reason in verdict.reasons if reason != "spec changed")
        yield replace(verdict, rule="reverted", reasons=("its rollout is reverted", *others))


def _as_before(wanted: DesiredVM, view: ProjectView, why: str) -> DesiredVM:
    seen, before = view.own[wanted.name][0], view.before[wanted.name]
    was = as_recorded(replace(seen, spec=before.spec, addresses=before.addresses), wanted.state, seen.policy)
    digest = spec_digest(seen.project, seen.fleet, wanted.state, before.spec, seen.policy)
    halt = Halt(spec_digest=wanted.spec_digest, why=why, outcome="reverted")
    return replace(was, spec_digest=digest, ignore_drift=wanted.ignore_drift, canary=False, halt=halt)

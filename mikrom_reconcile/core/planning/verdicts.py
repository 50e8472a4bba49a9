"""What people say of a rollout: that its canaries are good, or that it is over. The records of its VMs keep it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Halt
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import RunOverrides, VMChange
from mikrom_reconcile.core.planning.context import Draft
from mikrom_reconcile.core.planning.guards import as_recorded

ABORTED = "a person has aborted it"
_NOTHING = {
    "promote": "fleet {} has no healthy canary that waits to be promoted",
    "abort": "nothing of fleet {} is being rolled out, nothing has begun, or it is aborted",
}


def promoted(seen: ObservedVM) -> VMChange:
    """A canary that others need not wait for any more."""
    return _noted(seen, "promote", "it is promoted", canary=False)


def ended(seen: ObservedVM, why: str) -> VMChange:
    """A VM of a rollout that is over: no other is to be brought to what it has."""
    return _noted(seen, "abort", why, canary=False, halt=Halt(spec_digest=seen.spec_digest, why=why))


def has_ended(seen: ObservedVM) -> bool:
    """Whether its record says that already."""
    return seen.halt is not None and seen.halt.spec_digest == seen.spec_digest


def _noted(seen: ObservedVM, rule: str, reason: str, **said: Any) -> VMChange:
    return VMChange(
        name=seen.name,
        fleet=seen.fleet,
        host=seen.host,
        kind="update",
        rule=rule,
        reasons=(reason,),
        desired=replace(as_recorded(seen, seen.state, seen.policy), **said),
        observed=seen,
    )


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

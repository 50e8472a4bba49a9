"""Why a VM is as it is, and why something happens to it, or nothing: from the line in the specs to the action.

It puts together what the planner has decided; it decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.fields import recorded
from mikrom_reconcile.core.model.observed import HostView, ObservedVM
from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.placement.desired_state import render
from mikrom_reconcile.core.planning.diff import effective
from mikrom_reconcile.core.planning.rules import RULES, DiffInput, first_match
from mikrom_reconcile.core.specs.expand import UnplacedVM, expand
from mikrom_reconcile.core.specs.load import Specs, hosts_of
from mikrom_reconcile.core.specs.provenance import FieldOrigin, Provenance, leaves


class FieldStory(msgspec.Struct, frozen=True, kw_only=True):
    """One field: what is wanted and where that comes from (None: not wanted), what was applied, what the VMM says."""

    path: str
    wanted: FieldOrigin | None
    recorded: Any = None
    actual: Any = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one VM. `place` is where its fleet stands in the specs, "" if they do not want it.

    `rule` is the id of the rule of the diff that decided and `meaning` what it says; both are "" where none does.
    """

    name: str
    project: str
    revision: str
    place: str
    wanted: DesiredVM | None
    observed: tuple[ObservedVM, ...]
    fields: tuple[FieldStory, ...]
    rule: str
    meaning: str
    change: VMChange | None
    refusals: tuple[str, ...]
    conclusion: str


def explain(name: str, specs: Specs, plan: Plan, views: Iterable[HostView], *, here: str) -> Explanation | None:
    """The story of the VM called `name`; None when neither the specs nor any host that answers has it."""
    rows = [row for view in views if view.report for row in view.report.vms if row.name == name]
    observed = tuple(sorted(rows, key=lambda row: (row.project != specs.project, -row.token)))
    own = next((row for row in observed if row.project == specs.project), None)
    change = next((change for change in plan.changes if change.name == name), None)
    unplaced = next((vm for vm in expand(specs) if vm.name == name), None)
    if unplaced is None and not observed:
        return None
    known = Provenance(specs)
    desired = None
    if unplaced is not None:
        desired = change.desired if change and change.desired else _desired(unplaced, specs, own, here)
    origins = known.of(unplaced, desired.host) if unplaced and desired else ()
    rule = change.rule if change else _quiet_rule(desired, own)
    return Explanation(
        name=name,
        project=specs.project,
        revision=specs.tree.revision,
        place=known.place(unplaced, ("metadata", "name")) if unplaced else "",
        wanted=desired,
        observed=observed,
        fields=_stories(origins, own),
        rule=rule,
        meaning=str(RULES[rule].__doc__).partition("\n")[0] if rule else "",
        change=change,
        refusals=tuple(
            f"{refusal.message} [{refusal.rule}]"
            for refusal in plan.refusals
            if change and refusal.fleet == change.fleet and refusal.vm in {"", name}
        ),
        conclusion=_conclusion(specs, rule, change, desired, observed),
    )


def _desired(vm: UnplacedVM, specs: Specs, own: ObservedVM | None, here: str) -> DesiredVM:
    """What the specs want of a VM to which nothing happens; it stays on its host."""
    hosts = hosts_of(specs, here)
    host = own.host if own and own.host in hosts else (vm.hosts or hosts)[0]
    (desired,) = render(specs, here, [(vm, host)])
    return desired


def _stories(origins: tuple[FieldOrigin, ...], own: ObservedVM | None) -> tuple[FieldStory, ...]:
    by_path = {origin.path: origin for origin in origins}
    if own is None:
        return tuple(FieldStory(path=path, wanted=origin) for path, origin in by_path.items())
    values = recorded(fleet=own.fleet, state=own.state, spec=own.spec, policy=own.policy)
    applied = {".".join(path): value for path, value in leaves(values)}
    drift = {item.path: item.actual for item in own.drift}
    return tuple(
        FieldStory(
            path=path, wanted=by_path.get(path), recorded=applied.get(path), actual=drift.get(path, applied.get(path))
        )
        for path in sorted({*applied, *by_path} - {"fleet"})
    )


def _quiet_rule(desired: DesiredVM | None, own: ObservedVM | None) -> str:
    """The rule that answered that nothing is to be done."""
    if desired is None or (own is None and desired.state != "absent"):
        return ""
    return first_match(DiffInput(desired=effective(desired, own) if own else desired, observed=own))[0]


def _conclusion(
    specs: Specs, rule: str, change: VMChange | None, desired: DesiredVM | None, observed: tuple[ObservedVM, ...]
) -> str:
    """What happens, or why nothing does, in one sentence."""
    if change is not None:
        why = "; ".join(change.reasons)
        if change.kind in {"wait", "blocked"}:
            held = f"{change.wanted} is held back" if change.wanted else "nothing is done"
            return f"{held}: {why}"
        return f"{change.kind} on {change.host}: {why}"
    if rule == "not-restarted":
        return "nothing happens: its restart policy leaves it as it ended"
    if rule:
        return "nothing happens: it is as the specs want it"
    if desired is not None:
        return "nothing happens: it changed while this was looked at; ask again"
    row = observed[0]
    if row.project != specs.project:
        return f"nothing happens: it belongs to project {row.project}, and these specs speak for {specs.project}"
    if not specs.whole and row.fleet not in {fleet.name for fleet in specs.fleets}:
        return (
            f"nothing happens: its fleet {row.fleet} is not in these specs, and without a Project document they are"
            " not the whole truth"
        )
    return "nothing happens: it changed while this was looked at; ask again"

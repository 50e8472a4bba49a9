"""Actions asked for by name, past the specs: which VMs a person means, and what each of them then needs."""

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase

from msgspec.structs import replace

from mikrom_reconcile.core.model import observed as phases
from mikrom_reconcile.core.model.desired import State
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.fields import impact_of
from mikrom_reconcile.core.model.observed import ObservedState, ObservedVM, Placements, in_words
from mikrom_reconcile.core.model.plan import ChangeKind, Verb, VMChange
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.placement.scheduler import NOTHING
from mikrom_reconcile.core.planning.context import Draft, PlanResult, plan_of
from mikrom_reconcile.core.planning.guards import as_recorded, protected
from mikrom_reconcile.core.planning.rules import DiffInput, Verdict

STATES: dict[Verb, State] = {
    "start": "running", "stop": "stopped", "pause": "paused", "suspend": "suspended", "resume": "running",
}  # fmt: skip
"""What each verb leaves a VM in; a restart leaves it as it was ordered, a delete not at all."""

PAST_THE_SPECS = "this goes past the specs: the next run undoes what they contradict"


def decide_by_name(
    verb: Verb,
    names: tuple[str, ...],
    observed: ObservedState,
    acted_on: frozenset[str] = frozenset(),
    project: str = "",
    placements: Mapping[str, Placements] = NOTHING,
) -> PlanResult:
    """The plan of one verb on the VMs that `names` mean, with `*` and `?` in them. `placements` are by project. Asked
    again in the same run, `acted_on` names the VMs that were dealt with: restarted ones only have to run by now,
    deleted ones may be gone. Raises UsageError for a name that means nothing, and for VMs of several projects, whose
    leases nobody holds at once, and to delete one of several of one name; not once the `project` is known.
    """
    rows = _meant(names, observed, alone=verb == "delete" and not project)
    if not project:
        _refuse_what_means_nothing(names, rows, observed)
        project = _project_of(rows)
    rows = [row for row in rows if row.project in {"", project}]
    hosts = {view.host for view in observed.hosts if view.report is None}
    newer = {vm: host for vm, host in placements.get(project, Placements()).vms.items() if host in hosts}
    verdicts = [(row, _judge(verb, row, newer.get(row.name, ""), acted_on=row.name in acted_on)) for row in rows]
    left_alone = [row for row, verdict in verdicts if not isinstance(verdict, VMChange)]
    odd = [row for row in left_alone if _drifted(row) and row.name not in acted_on]
    warnings = [f"{it.name} on {it.host} is {it.phase} already, and left alone: {_drifted(it)}" for it in odd]
    changes = [verdict for _, verdict in verdicts if isinstance(verdict, VMChange)]
    draft = protected(Draft(changes=changes, unchanged=dict(Counter(row.host for row in left_alone))), lambda _: None)
    managed = [it for it in draft.changes if it.kind != "blocked" and not (it.observed and it.observed.unmanaged)]
    if any(it.desired is None or (it.observed and it.desired.state != it.observed.state) for it in managed):
        warnings.append(PAST_THE_SPECS)
    plan = plan_of(draft, observed, project=project, revision="", warnings=warnings)
    highest = max((view.report.highest_tokens.get(project, 0) for view in observed.hosts if view.report), default=0)
    return PlanResult(plan=plan, highest_token=highest)


def _meant(names: tuple[str, ...], observed: ObservedState, *, alone: bool) -> list[ObservedVM]:
    """The rows that the names mean: of two of one name and project the newer, or if they are `alone` a UsageError."""
    rows: dict[tuple[str, str], ObservedVM] = {}
    everything = (row for view in observed.hosts if view.report for row in view.report.vms)
    for row in (row for row in everything if any(fnmatchcase(row.name, name) for name in names)):
        key = row.name, row.project
        if alone and key in rows:
            raise UsageError(
                f"{row.name} is on {rows[key].host} and {row.host}: `mikrom orphans` says which is older, and"
                " `mikrom apply` removes that one, or all of them if no spec wants it (nothing was done)"
            )
        if key not in rows or row.token > rows[key].token:
            rows[key] = row
    return [rows[key] for key in sorted(rows)]


def _refuse_what_means_nothing(names: tuple[str, ...], rows: list[ObservedVM], observed: ObservedState) -> None:
    for name in names:
        if not any(fnmatchcase(row.name, name) for row in rows):
            unreachable = ", ".join(view.host for view in observed.hosts if view.report is None)
            unread = f" (could not be read: {unreachable})" if unreachable else ""
            known = sorted({row.name for view in observed.hosts if view.report for row in view.report.vms})
            hint = nearest(name, known) or "`mikrom get vms` lists them"
            raise UsageError(f"no host has a VM {shown(name)}{unread}; {hint} (nothing was done)")


def _project_of(rows: list[ObservedVM]) -> str:
    projects = sorted({row.project for row in rows if row.project})
    if len(projects) > 1:
        raise UsageError(f"these VMs belong to several projects ({', '.join(projects)}): name those of one at a time")
    if not projects:
        row = rows[0]
        raise UsageError(f"{row.name} on {row.host} cannot be read: {row.last_error}. Nothing was done.")
    return projects[0]


def _judge(verb: Verb, row: ObservedVM, newer_on: str, *, acted_on: bool) -> Verdict:
    """What `verb` means for a VM as it is now; one that was `acted_on` is not restarted once more. `newer_on` is the
    unreachable host that has it by what is remembered: what is seen is then an older copy.
    """
    row = replace(row, phase="running") if row.phase in phases.DEGRADED else row
    case = DiffInput(desired=None, observed=row)
    if row.phase == "unreadable":
        return case.change("blocked", f"it cannot be read: {row.last_error}")
    if newer_on and verb != "stop":
        return case.change("blocked", f"this is an older copy: it was last on {newer_on}, which could not be read")
    if verb == "delete":
        return case.change("delete", "asked for by name")
    if row.phase == "deleting":
        return case.change("blocked", "it is half deleted; `mikrom delete` finishes that")
    state: State = STATES.get(verb, "paused" if row.state == "paused" else "running")
    case = replace(case, desired=as_recorded(row, state, row.policy))
    if verb == "stop":
        done = row.phase in phases.SATISFIES["stopped"] and row.state == "stopped"
        return "unchanged" if done else case.change("stop", in_words(row.phase))
    as_asked = row.phase in phases.SATISFIES[state] and row.state == state
    can_go_on = row.phase in phases.HEALTHY or (verb == "resume" and row.phase == "suspended")
    if verb in {"pause", "suspend", "resume"} and not (as_asked or can_go_on):
        return case.change("blocked", f"it is {row.phase}; `mikrom start` brings it up")
    if verb != "restart" and _drifted(row) and row.phase in phases.HEALTHY:  # its memory is to stay
        return "unchanged" if as_asked else case.change("blocked", _drifted(row))
    if as_asked and (verb != "restart" or (acted_on and not row.drift)):
        return "unchanged"
    return case.change(_kind(verb, row), in_words(row.phase))


def _drifted(row: ObservedVM) -> str:
    """In what only a restart puts the VM right; "" if in nothing."""
    paths = ", ".join(item.path for item in row.drift if impact_of(item.path) in {"restart", "replace"})
    return f"its VMM is not as recorded ({paths}); `mikrom restart` puts that right" if paths else ""


def _kind(verb: Verb, row: ObservedVM) -> ChangeKind:
    """How a VM gets up: a live one is paused or resumed if that is enough, and a restart forgets a memory."""
    if verb == "suspend" or (verb == "restart" and row.phase == "suspended"):
        return verb
    if row.phase not in phases.HAS_VMM or row.phase == "starting":
        return "start"
    if verb == "restart" or row.phase not in phases.HEALTHY:
        return "restart"
    return "pause" if verb == "pause" else "resume"

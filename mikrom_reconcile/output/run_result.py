"""What a plan or a run comes to: text, JSON and exit code all say the same."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model import plan as model
from mikrom_reconcile.output import text
from mikrom_reconcile.output.plan import KINDS, NO_HOST, asked_of, kinds_of, plan_document, refusals, short, unreachable

CHANGES_OR_FAILED = 2
"""`plan --detailed-exitcode`: something to change. A run: some VM is not as specified. All four are bits."""
UNREACHABLE = 4
REFUSED = 8
LATE = 16
USAGE = 64

FAILED: frozenset[model.Result] = frozenset({"failed_temporary", "failed_permanent"})

VMOnHost = tuple[str, str]  # VM and host


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run left undone: `failed`, `refused` and `waiting` map VMs on hosts to the reason, each VM in one of them.
    `unreachable` maps hosts to the reason, `late` says that the deadline passed first. What waits is no failure: the
    next of the `scheduled` runs goes on with it; to a run that nobody follows, a guard has refused it.
    """

    failed: dict[VMOnHost, str]
    refused: dict[VMOnHost, str]
    waiting: dict[VMOnHost, str]
    scheduled: bool
    unreachable: dict[str, str]
    late: bool

    @property
    def exit_code(self) -> int:
        """0 when everything is as specified and was seen to be, or will be, else the bits of what stood in the way."""
        held = self.refused or (self.waiting and not self.scheduled and not self.late)
        bits = {CHANGES_OR_FAILED: self.failed, UNREACHABLE: self.unreachable, REFUSED: held, LATE: self.late}
        return sum(bit for bit, is_set in bits.items() if is_set)

    @property
    def converged(self) -> bool:
        """Whether everything is as specified."""
        return self.exit_code == 0 and not self.waiting


def plan_exit_code(plan: model.Plan, *, detailed: bool) -> int:
    """0 when everything could be planned; `detailed` adds 2 when there is something that may be changed."""
    pending = any(change.kind != "blocked" for change in plan.changes)
    blocked = any(change.kind == "blocked" and change.host not in plan.unreachable for change in plan.changes)
    bits = {CHANGES_OR_FAILED: detailed and pending, UNREACHABLE: plan.unreachable, REFUSED: blocked or plan.refusals}
    return sum(bit for bit, is_set in bits.items() if is_set)


def result_of(report: model.RunReport) -> RunResult:
    """What a run comes to, by what its last observation still found different. What failed counts even if the VM is as
    specified in the end. Without a last observation nothing that was to be changed counts as specified.
    """
    last = {(outcome.vm, outcome.host): outcome for outcome in report.outcomes}
    planned = {(change.name, change.host) for change in report.plan.changes}
    final = report.remaining or report.plan
    findings: dict[VMOnHost, tuple[str, str]] = {}
    for change in final.changes:
        vm = (change.name, change.host)
        finding = _finding(change, last.get(vm), late=report.late, planned=vm in planned)
        if finding and change.host not in final.unreachable:
            findings[vm] = finding
    for vm, outcome in last.items():
        if outcome.result in FAILED and outcome.host not in final.unreachable:
            findings[vm] = "failed", f"{outcome.verb}: {outcome.error or outcome.result}"
    kinds = ("failed", "refused", "waiting")
    by_kind = {kind: {vm: why for vm, (found, why) in findings.items() if found == kind} for kind in kinds}
    return RunResult(**by_kind, scheduled=report.origin == model.BEAT, unreachable=final.unreachable, late=report.late)


def _finding(
    change: model.VMChange, outcome: model.ActionOutcome | None, *, late: bool, planned: bool
) -> tuple[str, str] | None:
    """What a VM counts as (failed, refused, waiting), and why; None when only the deadline is to blame."""
    why = "; ".join(change.reasons)
    if change.kind == "blocked":
        return "refused", why
    if outcome is not None and outcome.result == "stale":
        return "refused", outcome.error or "the world has moved since the plan"
    if change.kind == "wait":
        unwell = change.observed is not None and change.observed.phase == "unhealthy"
        return "failed" if unwell else "waiting", why
    if late:
        return None
    if outcome is not None and outcome.result == "skipped":
        return "failed", f"{outcome.verb} was not begun: {outcome.error or 'skipped'}"
    if outcome is not None:
        return "failed", f"{outcome.verb} was done, and yet it needs {change.kind}: {why}"
    if planned:
        return "failed", f"{change.wanted or change.kind} was not attempted; run again"
    return "refused", f"needs {change.kind} since after the plan was made ({why}); run again"


IN_PROGRESS = "In progress"  # how the conclusion of a run begins that has not ended


def _past(verb: str) -> str:
    return {"stop": "stopped", "forget": "forgotten"}.get(verb) or verb.removesuffix("e") + "ed"


def outcome_line(outcome: model.ActionOutcome, style: text.Style) -> str:
    """One outcome, without a line break."""
    where = f"{text.sanitize(outcome.vm)} on {text.sanitize(outcome.host)}"
    match outcome.result:
        case "done":
            note = f"; {text.sanitize(outcome.note)}" if outcome.note else ""
            return f"{style.paint(_past(outcome.verb), 'green')} {where} in {text.duration(_seconds(outcome))}{note}"
        case "already_done":
            return f"{style.paint(f'{outcome.verb} was done before', 'dim')}: {where}"
        case "stale" | "skipped":
            result = style.paint(outcome.result, "magenta")
        case "failed_temporary" | "failed_permanent":
            result = style.paint("failed", "red")
    return f"{result}: {outcome.verb} {where}: {text.sanitize(outcome.error or '')}"


def _seconds(timed: model.ActionOutcome | model.RunReport) -> float:
    return (timed.finished_at - timed.started_at).total_seconds()


def outcome_row(outcome: model.ActionOutcome) -> text.Document:
    """What became of one action, for programs."""
    known = text.pick(outcome, "vm", "host", "verb", "result", "note")
    return known | {"duration_s": _seconds(outcome), "error": outcome.error}


def run_document(report: model.RunReport) -> text.Document:
    """The plan that was carried out, what became of it, and how the run ended."""
    outcomes = {"outcomes": [outcome_row(outcome) for outcome in report.outcomes]}
    return plan_document(report.plan) | outcomes | text.pick(result_of(report), "converged", "exit_code")


def run_text(report: model.RunReport, style: text.Style) -> str:
    """What is left undone, and the recap of a run. Ends with a line break."""
    record, recap = record_of(report), "\n".join(_recap(report, result_of(report), style))
    return f"{left_undone(record, style)}\n{recap}\n\n{conclusion_text(record, style)}\n"[1:]


def left_undone(run: model.RunRecord, style: text.Style) -> str:
    """The sections about what is not as specified."""
    problem = [f"revision {run.revision} was used: {run.source_problem}"] if run.source_problem else []
    return (
        text.section("Failed", run.failed, style, "red")
        + text.section("Refused", run.refused, style, "magenta")
        + text.section("Could not be read", run.unreachable, style, "red")
        + text.section("The source is broken", problem, style, "red")
    )


def conclusion_text(run: model.RunRecord, style: text.Style) -> str:
    """How a run ended, or that it has not, in its colour."""
    return style.paint(text.sanitize(run.conclusion), "bold", exit_look(run.exit_code))


def exit_look(exit_code: int | None) -> str:
    """The colour of an exit code."""
    return "yellow" if exit_code is None else "red" if exit_code else "green"


def record_of(report: model.RunReport, unfinished: str = "", exit_code: int | None = None) -> model.RunRecord:
    """What is kept of a run; `unfinished` says why it has ended before it could report, or that it goes on."""
    final = report.remaining or report.plan
    begun = model.RunRecord(
        **text.pick(report, "run_id", "origin", "author", "source_problem", "started_at", "finished_at"),
        project=report.plan.project,
        revision=report.plan.revision,
        planned=kinds_of(report.plan),
        outcomes=tuple(replace(outcome, observed=None) for outcome in report.outcomes),
        conclusion=f"{unfinished}: {_actions(report)}.",
        exit_code=exit_code,
    )
    if unfinished:
        return begun
    result = result_of(report)
    failed, refused = tuple(_reasons(result.failed)), tuple(_refused(final, result.refused))
    ended = replace(begun, conclusion=conclusion(report, result), exit_code=result.exit_code)
    return replace(ended, failed=failed, refused=refused, unreachable=tuple(unreachable(final)))


def _refused(final: model.Plan, refused: Mapping[VMOnHost, str]) -> Iterator[str]:
    """The guards' own words first, with their remedy; then the VMs that no guard has named."""
    yield from refusals(final)
    named = {refusal.vm or refusal.fleet for refusal in final.refusals}
    fleets = {change.name: change.fleet for change in final.changes}
    yield from _reasons({vm: why for vm, why in refused.items() if not {vm[0], fleets.get(vm[0])} & named})


def _reasons(reasons: Mapping[VMOnHost, str]) -> Iterator[str]:
    """One line for all VMs with the same reason, whether or not it names them."""
    groups = model.group_by(sorted(reasons), lambda found: reasons[found].replace(f"{found[0]}: ", ""))
    for reason, found in groups.items():
        yield f"{text.grouped(vm for vm, _ in found)} on {text.grouped(host or NO_HOST for _, host in found)}: {reason}"


def _recap(report: model.RunReport, result: RunResult, style: text.Style) -> Iterator[str]:
    """One line per host, in Ansible's words: ok are the VMs that are as specified now, changed ones among them."""
    recap = (
        ("ok", "green", Counter((report.remaining or report.plan).unchanged)),
        ("changed", "yellow", Counter(outcome.host for outcome in report.outcomes if outcome.result == "done")),
        ("failed", "red", Counter(host for _, host in result.failed)),
        ("unreachable", "red", Counter(result.unreachable.keys())),
        ("refused", "magenta", Counter(host or NO_HOST for _, host in result.refused)),
    )
    hosts = sorted({host for _, _, counts in recap for host in counts})
    width = max(map(len, hosts), default=0)
    for host in hosts:
        cells = (style.paint(f"{name}={counts[host]}", look if counts[host] else "dim") for name, look, counts in recap)
        yield "   ".join([style.paint(f"{text.sanitize(host):<{width}}", "bold"), *cells])


def conclusion(report: model.RunReport, result: RunResult) -> str:
    """How a run ended, in one line without a line break."""
    took, actions = text.duration(_seconds(report)), _actions(report)
    if result.converged:
        what = "all" if report.plan.selected is None else "all that was selected"
        return f"Converged in {took}: {actions}; {what} is as {asked_of(report.plan)}."
    left = (
        (result.failed, "VM", "failed"),
        (result.refused, "VM", "refused"),
        (result.unreachable, "host", "could not be read"),
        (result.waiting, "VM", "waiting"),
    )
    parts = [f"{text.counted(len(found), noun)} {what}" for found, noun, what in left if found]
    parts += ["the deadline passed first"] if result.late else []
    how = "Not converged after" if result.exit_code else f"{IN_PROGRESS} after"
    return f"{how} {took}: {actions}; {', '.join(parts)}."


def _actions(report: model.RunReport) -> str:
    done = Counter(outcome.verb for outcome in report.outcomes if outcome.result == "done")
    return text.listed({_past(verb): count for verb, count in sorted(done.items())}) or "nothing was done"


Event = tuple[model.RunRecord, model.ActionOutcome]


def touched(run: model.RunRecord, name: str) -> bool:
    """Whether a run is called so, or acted on a VM, on a host or in a fleet of that name."""
    return run.run_id == name or any(_concerns(outcome, name) for outcome in run.outcomes)


def settled(runs: Sequence[model.RunRecord]) -> list[model.RunRecord]:
    """The runs; one without an end is over where another of its project began later, since they run one at a time."""
    begun: dict[str, datetime] = {}
    for run in runs:
        if not run.origin.startswith(model.SUPERVISION):
            begun[run.project] = max(run.started_at, begun.get(run.project, run.started_at))
    killed = [run.exit_code is None and run.started_at < begun.get(run.project, run.started_at) for run in runs]
    words = [run.conclusion.replace(IN_PROGRESS, "Killed", 1) for run in runs]
    return [replace(run, conclusion=word) if end else run for run, word, end in zip(runs, words, killed, strict=True)]


def events_in(runs: Iterable[model.RunRecord], name: str | None) -> list[Event]:
    """What was done, the oldest first; with a name only to that VM, on that host or in that fleet."""
    found = ((run, outcome) for run in runs for outcome in run.outcomes if name is None or _concerns(outcome, name))
    return sorted(found, key=lambda event: event[1].finished_at)


def _concerns(outcome: model.ActionOutcome, name: str) -> bool:
    return name in {outcome.vm, outcome.host, outcome.fleet}


def history_text(
    runs: Sequence[model.RunRecord], now: datetime, style: text.Style, unfinished: Sequence[model.UnfinishedRun] = ()
) -> str:
    """One line per run, those that wait or go on first. Ends with a line break."""
    if not runs and not unfinished:
        return "No run so far.\n"
    lines = [
        (run.since, run, "", unfinished_line(run), "red" if run.state == "failed" else "yellow") for run in unfinished
    ] + [(run.finished_at, run, made_by(run), run.conclusion + _times(run), exit_look(run.exit_code)) for run in runs]
    rows = [
        (text.time_text(at), (text.age(at, now), "dim"), (run.run_id, "dim"), run.origin, revision, (result, look))
        for at, run, revision, result, look in lines
    ]
    return text.table(("WHEN", "AGE", "RUN", "WHO", "REVISION", "RESULT"), rows, style)


def run_details(run: model.RunRecord, style: text.Style) -> str:
    """Everything that is kept of one run. Ends with a line break."""
    of = f"{text.time_text(run.started_at)}: {run.origin}, project {run.project} at {made_by(run)}"
    head = f"Run {run.run_id} of {of}"
    actions = "".join(f"{_action_line(outcome, style)}\n" for outcome in run.outcomes)
    return f"{text.sanitize(head + _times(run))}\n{actions}{left_undone(run, style)}\n{conclusion_text(run, style)}\n"


def runs_document(runs: Iterable[model.RunRecord], unfinished: Sequence[model.UnfinishedRun]) -> text.Document:
    """Runs that were kept, the latest first, and those without a report; `summary` is that of their plan."""
    rows = [run_row(run) | {"outcomes": [_action_row(outcome) for outcome in run.outcomes]} for run in runs]
    return {"runs": rows, "unfinished": unfinished}


def run_row(run: model.RunRecord) -> text.Document:
    """`exit_code` is null until the run has ended."""
    return {
        **text.pick(run, "run_id", "origin", "project", "revision", "author", "started_at", "finished_at"),
        "since": run.since or run.started_at,
        "times": run.times,
        "summary": {"unchanged": 0, **dict.fromkeys(KINDS, 0), **run.planned},
        "done": sum(outcome.result == "done" for outcome in run.outcomes),
        **text.pick(run, "failed", "refused", "unreachable", "conclusion", "exit_code", "source_problem"),
    }


def unfinished_line(run: model.UnfinishedRun) -> str:
    """How far a run is that has no report."""
    of = "" if run.planned is None else f" of {run.planned}"
    match run.state:
        case "waiting":
            return f"Waits for a control worker: 0{of} done."
        case "running":
            failed = f", {run.failed} failed" if run.failed else ""
            return f"Goes on: {run.done}{of} done{failed}."
        case "failed":
            return f"Ended without a report: {run.error}"


def events_text(found: Iterable[Event], style: text.Style) -> str:
    """One line per action. Ends with a line break."""
    told = ((f"[{run.origin}, run {run.run_id} at {made_by(run)}{_times(run)}]", it) for run, it in found)
    lines = (f"{_action_line(outcome, style)} {style.paint(text.sanitize(of), 'dim')}" for of, outcome in told)
    return "".join(f"{line}\n" for line in lines) or "Nothing was done so far.\n"


def events_document(found: Iterable[Event]) -> text.Document:
    """What was done, the oldest first."""
    names = ("run_id", "origin", "revision", "author", "times")
    rows = ((text.pick(run, *names) | {"since": run.since or run.started_at}, outcome) for run, outcome in found)
    return {"events": [row | _action_row(outcome) for row, outcome in rows]}


def _action_row(outcome: model.ActionOutcome) -> text.Document:
    return text.pick(outcome, "finished_at", "reasons", "fields") | outcome_row(outcome)


def _action_line(outcome: model.ActionOutcome, style: text.Style) -> str:
    fields = (f"{field.path}: {short(field.before)} → {short(field.after)}" for field in outcome.fields)
    why = text.sanitize("; ".join((*outcome.reasons, *fields)))
    return f"{text.time_text(outcome.finished_at)}  {outcome_line(outcome, style)}" + (f": {why}" if why else "")


def made_by(run: model.RunRecord) -> str:
    """The commit or digest of the specs, and their author."""
    return f"{run.revision or '-'} by {run.author}" if run.author else run.revision or "-"


def _times(run: model.RunRecord) -> str:
    return f" ({run.times} times since {text.time_text(run.since or run.started_at)})" if run.times > 1 else ""

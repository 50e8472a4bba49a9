"""What a plan or a run comes to: text, JSON and exit code all say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.plan import BEAT, ActionOutcome, Plan, Result, RunRecord, RunReport, VMChange, group_by
from mikrom_reconcile.output.plan import NO_HOST, asked_of, kinds_of, plan_document, refusals, unreachable
from mikrom_reconcile.output.text import Document, Style, counted, duration, grouped, listed, pick, sanitize, section

CHANGES_OR_FAILED = 2
"""`plan --detailed-exitcode`: something to change. A run: some VM is not as specified. All four are bits."""
UNREACHABLE = 4
REFUSED = 8
LATE = 16
USAGE = 64

FAILED: frozenset[Result] = frozenset({"failed_temporary", "failed_permanent"})

VMOnHost = tuple[str, str]
"""VM and host."""


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


def plan_exit_code(plan: Plan, *, detailed: bool) -> int:
    """0 when everything could be planned; `detailed` adds 2 when there is something that may be changed."""
    pending = any(change.kind != "blocked" for change in plan.changes)
    blocked = any(change.kind == "blocked" and change.host not in plan.unreachable for change in plan.changes)
    bits = {CHANGES_OR_FAILED: detailed and pending, UNREACHABLE: plan.unreachable, REFUSED: blocked or plan.refusals}
    return sum(bit for bit, is_set in bits.items() if is_set)


def result_of(report: RunReport) -> RunResult:
    """What a run comes to, by what its last observation still found different.

    What failed counts even if the VM is as specified in the end. Without a last observation nothing that was to be
    changed counts as specified.
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
    by_kind = {
        kind: {vm: reason for vm, (found, reason) in findings.items() if found == kind}
        for kind in ("failed", "refused", "waiting")
    }
    return RunResult(**by_kind, scheduled=report.origin == BEAT, unreachable=final.unreachable, late=report.late)


def _finding(change: VMChange, outcome: ActionOutcome | None, *, late: bool, planned: bool) -> tuple[str, str] | None:
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


IN_PROGRESS = "In progress"
"""How the conclusion of a run begins that has not ended."""


def _past(verb: str) -> str:
    """Such as "created", "restarted"."""
    return "stopped" if verb == "stop" else verb.removesuffix("e") + "ed"


def outcome_line(outcome: ActionOutcome, style: Style) -> str:
    """One outcome, without a line break."""
    where = f"{sanitize(outcome.vm)} on {sanitize(outcome.host)}"
    match outcome.result:
        case "done":
            return f"{style.paint(_past(outcome.verb), 'green')} {where} in {duration(_seconds(outcome))}"
        case "already_done":
            return f"{style.paint(f'{outcome.verb} was done before', 'dim')}: {where}"
        case "stale" | "skipped":
            result = style.paint(outcome.result, "magenta")
        case "failed_temporary" | "failed_permanent":
            result = style.paint("failed", "red")
    return f"{result}: {outcome.verb} {where}: {sanitize(outcome.error or '')}"


def _seconds(timed: ActionOutcome | RunReport) -> float:
    return (timed.finished_at - timed.started_at).total_seconds()


def outcome_row(outcome: ActionOutcome) -> Document:
    """What became of one action, for programs."""
    known = pick(outcome, "vm", "host", "verb", "result")
    return known | {"duration_s": _seconds(outcome), "error": outcome.error}


def run_document(report: RunReport) -> Document:
    """The plan that was carried out, what became of it, and how the run ended."""
    outcomes = {"outcomes": [outcome_row(outcome) for outcome in report.outcomes]}
    return plan_document(report.plan) | outcomes | pick(result_of(report), "converged", "exit_code")


def run_text(report: RunReport, style: Style) -> str:
    """What is left undone, and the recap of a run. Ends with a line break."""
    record, recap = record_of(report), "\n".join(_recap(report, result_of(report), style))
    return f"{left_undone(record, style)}\n{recap}\n\n{conclusion_text(record, style)}\n"[1:]


def left_undone(run: RunRecord, style: Style) -> str:
    """The sections about what is not as specified."""
    problem = [f"revision {run.revision} was used: {run.source_problem}"] if run.source_problem else []
    return (
        section("Failed", run.failed, style, "red")
        + section("Refused", run.refused, style, "magenta")
        + section("Could not be read", run.unreachable, style, "red")
        + section("The source is broken", problem, style, "red")
    )


def conclusion_text(run: RunRecord, style: Style) -> str:
    """How a run ended, or that it has not, in its colour."""
    return style.paint(sanitize(run.conclusion), "bold", exit_look(run.exit_code))


def exit_look(exit_code: int | None) -> str:
    """The colour of an exit code."""
    return "yellow" if exit_code is None else "red" if exit_code else "green"


def record_of(report: RunReport, unfinished: str = "", exit_code: int | None = None) -> RunRecord:
    """What is kept of a run; `unfinished` says why it has ended before it could report, or that it goes on."""
    final = report.remaining or report.plan
    begun = RunRecord(
        **pick(report, "run_id", "origin", "author", "source_problem", "started_at", "finished_at"),
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
    return replace(
        begun,
        failed=tuple(_reasons(result.failed)),
        refused=tuple(_refused(final, result.refused)),
        unreachable=tuple(unreachable(final)),
        conclusion=conclusion(report, result),
        exit_code=result.exit_code,
    )


def _refused(final: Plan, refused: Mapping[VMOnHost, str]) -> Iterator[str]:
    """The guards' own words first, with their remedy; then the VMs that no guard has named."""
    yield from refusals(final)
    named = {refusal.vm or refusal.fleet for refusal in final.refusals}
    fleets = {change.name: change.fleet for change in final.changes}
    yield from _reasons({vm: why for vm, why in refused.items() if not {vm[0], fleets.get(vm[0])} & named})


def _reasons(reasons: Mapping[VMOnHost, str]) -> Iterator[str]:
    """One line for all VMs with the same reason, whether or not it names them."""
    groups = group_by(sorted(reasons), lambda found: reasons[found].replace(f"{found[0]}: ", ""))
    for reason, found in groups.items():
        yield f"{grouped(vm for vm, _ in found)} on {grouped(host or NO_HOST for _, host in found)}: {reason}"


def _recap(report: RunReport, result: RunResult, style: Style) -> Iterator[str]:
    """One line per host, in Ansible's words: ok are the VMs that are as specified now, changed ones among them."""
    ok = (report.remaining or report.plan).unchanged
    changed = Counter(outcome.host for outcome in report.outcomes if outcome.result == "done")
    failed = Counter(host for _, host in result.failed)
    refused = Counter(host or NO_HOST for _, host in result.refused)
    hosts = sorted({*ok, *changed, *failed, *refused, *result.unreachable})
    width = max((len(host) for host in hosts), default=0)
    for host in hosts:
        counts = (
            ("ok", ok.get(host, 0), "green"),
            ("changed", changed[host], "yellow"),
            ("failed", failed[host], "red"),
            ("unreachable", int(host in result.unreachable), "red"),
            ("refused", refused[host], "magenta"),
        )
        cells = (style.paint(f"{name}={count}", look if count else "dim") for name, count, look in counts)
        yield "   ".join([style.paint(f"{sanitize(host):<{width}}", "bold"), *cells])


def conclusion(report: RunReport, result: RunResult) -> str:
    """How a run ended, in one line without a line break."""
    took, actions = duration(_seconds(report)), _actions(report)
    if result.converged:
        what = "all" if report.plan.selected is None else "all that was selected"
        return f"Converged in {took}: {actions}; {what} is as {asked_of(report.plan)}."
    left = (
        (result.failed, "VM", "failed"),
        (result.refused, "VM", "refused"),
        (result.unreachable, "host", "could not be read"),
        (result.waiting, "VM", "waiting"),
    )
    parts = [f"{counted(len(found), noun)} {what}" for found, noun, what in left if found]
    parts += ["the deadline passed first"] if result.late else []
    how = "Not converged after" if result.exit_code else f"{IN_PROGRESS} after"
    return f"{how} {took}: {actions}; {', '.join(parts)}."


def _actions(report: RunReport) -> str:
    done = Counter(outcome.verb for outcome in report.outcomes if outcome.result == "done")
    return listed({_past(verb): count for verb, count in sorted(done.items())}) or "nothing was done"

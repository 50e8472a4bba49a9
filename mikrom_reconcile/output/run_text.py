"""A run as people and programs see it: a line per outcome, a recap per host, what is left undone, what is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import ActionOutcome, RunRecord, RunReport
from mikrom_reconcile.output.plan import NO_HOST, asked_of, kinds_of, plan_document, refusals, unreachable
from mikrom_reconcile.output.run_result import RunResult, VMOnHost, result_of
from mikrom_reconcile.output.text import Document, Style, counted, duration, grouped, listed, pick, sanitize, section

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
    outcomes = [outcome_row(outcome) for outcome in report.outcomes]
    return plan_document(report.plan) | {"outcomes": outcomes} | pick(result_of(report), "converged", "exit_code")


def run_text(report: RunReport, style: Style) -> str:
    """What is left undone, and the recap of a run. Ends with a line break."""
    result, record = result_of(report), record_of(report)
    recap = "\n".join(_recap(report, result, style))
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
    groups: dict[str, list[VMOnHost]] = {}
    for (vm, host), reason in sorted(reasons.items()):
        groups.setdefault(reason.replace(f"{vm}: ", ""), []).append((vm, host or NO_HOST))
    for reason, found in groups.items():
        vms, hosts = zip(*found, strict=True)
        yield f"{grouped(vms)} on {grouped(hosts)}: {reason}"


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

"""A run as it goes on, and what it comes to: one line per outcome, a recap per host, and what is left undone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import ActionOutcome, RunRecord, RunReport
from mikrom_reconcile.output.names import grouped
from mikrom_reconcile.output.plan_parts import NO_HOST, kinds_of, refusals, unreachable
from mikrom_reconcile.output.run_result import Verdict, VMOnHost, verdict_of
from mikrom_reconcile.output.sanitize import one_line
from mikrom_reconcile.output.section import section
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.units import counted, duration, listed

PAST: dict[str, str] = {
    "create": "created",
    "start": "started",
    "stop": "stopped",
    "pause": "paused",
    "resume": "resumed",
    "update": "updated",
    "restart": "restarted",
    "delete": "deleted",
}
"""What has been done when a verb has been carried out."""

IN_PROGRESS = "In progress"
"""How the conclusion of a run begins that has not ended."""


def outcome_line(outcome: ActionOutcome, style: Style) -> str:
    """One outcome, without a line break."""
    where = f"{one_line(outcome.vm)} on {one_line(outcome.host)}"
    took = duration((outcome.finished_at - outcome.started_at).total_seconds())
    match outcome.result:
        case "done":
            return f"{style.paint(PAST.get(outcome.verb, outcome.verb), 'green')} {where} in {took}"
        case "already_done":
            return f"{style.paint(f'{outcome.verb} was done before', 'dim')}: {where}"
        case "stale" | "skipped":
            return f"{style.paint(outcome.result, 'magenta')}: {outcome.verb} {where}: {one_line(outcome.error or '')}"
        case "failed_temporary" | "failed_permanent":
            return f"{style.paint('failed', 'red')}: {outcome.verb} {where}: {one_line(outcome.error or '')}"


def run_text(report: RunReport, style: Style) -> str:
    """The recap of a run. Ends with a line break."""
    verdict = verdict_of(report)
    lines = left_undone(record_of(report), style)
    lines += ["", *_recap(report, verdict, style), "", painted(conclusion(report, verdict), verdict.exit_code, style)]
    return "\n".join(lines[1:]) + "\n"


def left_undone(run: RunRecord, style: Style) -> list[str]:
    """The sections about what is not as specified."""
    problem = [f"revision {run.revision} was used: {run.source_problem}"] if run.source_problem else []
    return [
        *section("Failed", run.failed, style, "red"),
        *section("Refused", run.refused, style, "magenta"),
        *section("Could not be read", run.unreachable, style, "red"),
        *section("The source is broken", problem, style, "red"),
    ]


def painted(sentence: str, exit_code: int | None, style: Style) -> str:
    """How a run ended, in its colour; one without an exit code has not."""
    return style.paint(one_line(sentence), "bold", "yellow" if exit_code is None else "red" if exit_code else "green")


def record_of(report: RunReport, unfinished: str = "", exit_code: int | None = None) -> RunRecord:
    """What is kept of a run; `unfinished` says why it has ended before it could report, or that it goes on."""
    verdict = None if unfinished else verdict_of(report)
    final = report.remaining or report.plan
    return RunRecord(
        run_id=report.run_id,
        origin=report.origin,
        project=report.plan.project,
        revision=report.plan.revision,
        author=report.author,
        source_problem=report.source_problem,
        started_at=report.started_at,
        finished_at=report.finished_at,
        planned=kinds_of(report.plan),
        outcomes=tuple(replace(outcome, observed=None) for outcome in report.outcomes),
        failed=tuple(_reasons(verdict.failed)) if verdict else (),
        refused=tuple(_refused(final, verdict.refused)) if verdict else (),
        unreachable=tuple(unreachable(final)) if verdict else (),
        conclusion=conclusion(report, verdict) if verdict else f"{unfinished}: {_deeds(report)}.",
        exit_code=verdict.exit_code if verdict else exit_code,
    )


def _refused(final: Plan, refused: Mapping[VMOnHost, str]) -> Iterator[str]:
    """The guards' own words first, with their way out; then the VMs of which no guard has spoken."""
    yield from refusals(final)
    spoken_of = {refusal.vm or refusal.fleet for refusal in final.refusals}
    fleets = {change.name: change.fleet for change in final.changes}
    yield from _reasons({vm: why for vm, why in refused.items() if not {vm[0], fleets.get(vm[0])} & spoken_of})


def _reasons(reasons: Mapping[VMOnHost, str]) -> Iterator[str]:
    """One line for all VMs with the same reason, whether or not it names them."""
    groups: dict[str, list[VMOnHost]] = {}
    for (vm, host), reason in sorted(reasons.items()):
        groups.setdefault(reason.replace(f"{vm}: ", ""), []).append((vm, host or NO_HOST))
    for reason, found in groups.items():
        vms, hosts = zip(*found, strict=True)
        yield f"{grouped(vms)} on {grouped(hosts)}: {reason}"


def _recap(report: RunReport, verdict: Verdict, style: Style) -> Iterator[str]:
    """One line per host, in Ansible's words: ok are the VMs that are as specified now, changed ones among them."""
    final = report.remaining or report.plan
    changed = Counter(outcome.host for outcome in report.outcomes if outcome.result == "done")
    failed = Counter(host for _, host in verdict.failed)
    refused = Counter(host or NO_HOST for _, host in verdict.refused)
    hosts = sorted({*final.unchanged, *changed, *failed, *refused, *verdict.unreachable})
    width = max((len(host) for host in hosts), default=0)
    for host in hosts:
        counts = (
            ("ok", final.unchanged.get(host, 0), "green"),
            ("changed", changed[host], "yellow"),
            ("failed", failed[host], "red"),
            ("unreachable", int(host in verdict.unreachable), "red"),
            ("refused", refused[host], "magenta"),
        )
        cells = "   ".join(
            style.paint(f"{name}={count}", *([look] if count else ["dim"])) for name, count, look in counts
        )
        yield f"{style.paint(f'{one_line(host):<{width}}', 'bold')}   {cells}"


def conclusion(report: RunReport, verdict: Verdict) -> str:
    """How a run ended, in one line without a line break."""
    took = duration((report.finished_at - report.started_at).total_seconds())
    deeds = _deeds(report)
    asked = "specified" if report.plan.revision else "asked for"
    if verdict.converged:
        what = "all" if report.plan.selected is None else "all that was selected"
        return f"Converged in {took}: {deeds}; {what} is as {asked}."
    parts = [f"{counted(len(verdict.failed), 'VM')} failed"] if verdict.failed else []
    parts += [f"{counted(len(verdict.refused), 'VM')} refused"] if verdict.refused else []
    parts += [f"{counted(len(verdict.unreachable), 'host')} could not be read"] if verdict.unreachable else []
    parts += [f"{counted(len(verdict.waiting), 'VM')} waiting"] if verdict.waiting else []
    parts += ["the deadline passed first"] if verdict.late else []
    how = "Not converged after" if verdict.exit_code else f"{IN_PROGRESS} after"
    return f"{how} {took}: {deeds}; {', '.join(parts)}."


def _deeds(report: RunReport) -> str:
    done = Counter(outcome.verb for outcome in report.outcomes if outcome.result == "done")
    return listed({PAST.get(verb, verb): count for verb, count in sorted(done.items())}) or "nothing was done"

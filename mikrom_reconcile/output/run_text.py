"""A run as it goes on, and what it comes to: one line per outcome, a recap per host, and what is left undone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import ActionOutcome, RunReport
from mikrom_reconcile.output.names import grouped
from mikrom_reconcile.output.neutral import one_line
from mikrom_reconcile.output.plan_parts import NO_HOST, refusals, unreachable
from mikrom_reconcile.output.section import section
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.units import counted, duration, listed
from mikrom_reconcile.output.verdict import Verdict, VMOnHost, verdict_of

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
    final = report.remaining or report.plan
    lines = section("Failed", _reasons(verdict.failed), style, "red")
    lines += section("Refused", _refused(final, verdict.refused), style, "magenta")
    lines += section("Could not be read", unreachable(final), style, "red")
    problem = [f"revision {report.plan.revision} was used: {report.source_problem}"] if report.source_problem else []
    lines += section("The source is broken", problem, style, "red")
    lines += ["", *_recap(report, verdict, style), "", conclusion(report, verdict, style)]
    return "\n".join(lines[1:]) + "\n"


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


def conclusion(report: RunReport, verdict: Verdict, style: Style) -> str:
    """How a run ended, in one line without a line break."""
    took = duration((report.finished_at - report.started_at).total_seconds())
    done = Counter(outcome.verb for outcome in report.outcomes if outcome.result == "done")
    deeds = listed({PAST.get(verb, verb): count for verb, count in sorted(done.items())}) or "nothing was done"
    asked = "specified" if report.plan.revision else "asked for"
    if verdict.exit_code == 0:
        what = "all" if report.plan.selected is None else "all that was selected"
        return style.paint(f"Converged in {took}: {deeds}; {what} is as {asked}.", "bold", "green")
    parts = [f"{counted(len(verdict.failed), 'VM')} failed"] if verdict.failed else []
    parts += [f"{counted(len(verdict.refused), 'VM')} refused"] if verdict.refused else []
    parts += [f"{counted(len(verdict.unreachable), 'host')} could not be read"] if verdict.unreachable else []
    parts += ["the deadline passed first"] if verdict.late else []
    return style.paint(f"Not converged after {took}: {deeds}; {', '.join(parts)}.", "bold", "red")

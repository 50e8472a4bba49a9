"""A run as it goes on, and what it comes to: one line per outcome, a recap per host, and what is left undone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from mikrom_reconcile.core.model.run import ActionOutcome, Result, RunReport
from mikrom_reconcile.output.names import grouped
from mikrom_reconcile.output.neutral import one_line
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.units import counted, duration, listed
from mikrom_reconcile.output.verdict import Verdict, VMOnHost, verdict_of

PAST: dict[str, str] = {
    "create": "created",
    "start": "started",
    "stop": "stopped",
    "update": "updated",
    "restart": "restarted",
    "delete": "deleted",
}
"""What has been done when a verb has been carried out."""

FAILED: frozenset[Result] = frozenset({"failed_temporary", "failed_permanent"})


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
    lines = [*_left("Failed", verdict.failed, style, "red"), *_left("Refused", verdict.refused, style, "magenta")]
    lines += [""] if lines else []
    lines += _recap(report, verdict, style)
    lines += ["", conclusion(report, verdict, style)]
    return "\n".join(lines) + "\n"


def _left(title: str, reasons: Mapping[VMOnHost, str], style: Style, look: str) -> Iterator[str]:
    """The VMs that are not as specified, those with the same reason together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for (vm, host), reason in sorted(reasons.items()):
        groups.setdefault((host, reason), []).append(vm)
    if groups:
        yield style.paint(f"{title}:", look)
    for (host, reason), vms in groups.items():
        yield f"  {style.paint('!', look)} {one_line(grouped(vms))} on {one_line(host)}: {one_line(reason)}"


def _recap(report: RunReport, verdict: Verdict, style: Style) -> Iterator[str]:
    """One line per host, in Ansible's words: ok are the VMs that are as specified now, changed ones among them."""
    final = report.remaining or report.plan
    changed = Counter(outcome.host for outcome in report.outcomes if outcome.result == "done")
    failed = Counter(host for _, host in verdict.failed)
    refused = Counter(host for _, host in verdict.refused)
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
    if verdict.exit_code == 0:
        return style.paint(f"Converged in {took}: {deeds}; every VM is as specified.", "bold", "green")
    parts = [f"{counted(len(verdict.failed), 'VM')} failed"] if verdict.failed else []
    parts += [f"{counted(len(verdict.refused), 'VM')} refused"] if verdict.refused else []
    parts += [f"{counted(len(verdict.unreachable), 'host')} could not be read"] if verdict.unreachable else []
    parts += ["the deadline passed first"] if verdict.late else []
    return style.paint(f"Not converged after {took}: {deeds}; {', '.join(parts)}.", "bold", "red")

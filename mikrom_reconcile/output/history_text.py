"""Runs that were kept, and what they did, as a time line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from mikrom_reconcile.core.model.run import ActionOutcome, RunReport
from mikrom_reconcile.output.plan_parts import summary
from mikrom_reconcile.output.run_text import conclusion, outcome_line
from mikrom_reconcile.output.style import PLAIN, Style
from mikrom_reconcile.output.table import table
from mikrom_reconcile.output.units import age
from mikrom_reconcile.output.verdict import verdict_of

Event = tuple[RunReport, ActionOutcome]


def touched(report: RunReport, name: str) -> bool:
    """Whether a run acted on a VM, on a host or in a fleet of that name."""
    members = {change.name for change in report.plan.changes if change.fleet == name} | {name}
    return any(outcome.host == name or outcome.vm in members for outcome in report.outcomes)


def events(reports: Iterable[RunReport], name: str | None) -> list[Event]:
    """What was done, the oldest first; with a name only to that VM or on that host."""
    found = (
        (report, outcome)
        for report in reports
        for outcome in report.outcomes
        if name is None or name in {outcome.vm, outcome.host}
    )
    return sorted(found, key=lambda event: event[1].finished_at)


def history_text(reports: Sequence[RunReport], now: datetime, style: Style) -> str:
    """One line per run. Ends with a line break."""
    if not reports:
        return "No run so far.\n"
    rows = []
    for report in reports:
        verdict = verdict_of(report)
        rows.append(
            (
                (_time(report.finished_at), ""),
                (age(report.finished_at, now), "dim"),
                (report.run_id, "dim"),
                (report.origin, ""),
                (summary(report.plan).removeprefix("Plan: "), ""),
                (conclusion(report, verdict, PLAIN), "red" if verdict.exit_code else "green"),
            )
        )
    return table(("WHEN", "AGE", "RUN", "WHO", "PLAN", "RESULT"), rows, style)


def events_text(found: Iterable[Event], style: Style) -> str:
    """One line per deed. Ends with a line break, if there is any."""
    return "".join(_lines(found, style)) or "Nothing was done so far.\n"


def _lines(found: Iterable[Event], style: Style) -> Iterator[str]:
    for report, outcome in found:
        run = style.paint(f"(run {report.run_id})", "dim")
        yield f"{_time(outcome.finished_at)}  {outcome_line(outcome, style)} {run}\n"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"

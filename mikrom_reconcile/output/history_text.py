"""Runs that were kept, and what they did, as a time line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from mikrom_reconcile.core.model.run import ActionOutcome, RunReport, UnfinishedRun
from mikrom_reconcile.output.neutral import one_line
from mikrom_reconcile.output.plan_parts import summary
from mikrom_reconcile.output.run_text import conclusion, outcome_line
from mikrom_reconcile.output.style import PLAIN, Style
from mikrom_reconcile.output.table import table
from mikrom_reconcile.output.units import age, counted
from mikrom_reconcile.output.verdict import verdict_of

Event = tuple[RunReport, ActionOutcome]


def touched(report: RunReport, name: str) -> bool:
    """Whether a run is called so, or acted on a VM, on a host or in a fleet of that name."""
    if report.run_id == name:
        return True
    members = {change.name for change in report.plan.changes if change.fleet == name} | {name}
    return any(outcome.host == name or outcome.vm in members for outcome in report.outcomes)


def reasons_of(report: RunReport, outcome: ActionOutcome) -> tuple[str, ...]:
    """What the run found, and acted on; nothing if it did so in a later pass than it planned."""
    changes = (change for change in report.plan.changes if (change.name, change.host) == (outcome.vm, outcome.host))
    return next((change.reasons for change in changes), ())


def events(reports: Iterable[RunReport], name: str | None) -> list[Event]:
    """What was done, the oldest first; with a name only to that VM or on that host."""
    found = (
        (report, outcome)
        for report in reports
        for outcome in report.outcomes
        if name is None or name in {outcome.vm, outcome.host}
    )
    return sorted(found, key=lambda event: event[1].finished_at)


def history_text(
    reports: Sequence[RunReport], now: datetime, style: Style, unfinished: Sequence[UnfinishedRun] = ()
) -> str:
    """One line per run, those without a report first. Ends with a line break."""
    if not reports and not unfinished:
        return "No run so far.\n"
    rows = [
        (
            (_time(run.since), ""),
            (age(run.since, now), "dim"),
            (run.run_id, "dim"),
            (run.origin, ""),
            ("" if run.planned is None else counted(run.planned, "action"), ""),
            (unfinished_line(run), "red" if run.state == "failed" else "yellow"),
        )
        for run in unfinished
    ]
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


def unfinished_line(run: UnfinishedRun) -> str:
    """How far a run is that has no report."""
    match run.state:
        case "waiting":
            return "Waits for a control worker."
        case "running":
            of = "" if run.planned is None else f" of {run.planned}"
            failed = f", {run.failed} failed" if run.failed else ""
            return f"Goes on: {run.done}{of} done{failed}."
        case "failed":
            return f"Ended without a report: {run.error}"


def events_text(found: Iterable[Event], style: Style) -> str:
    """One line per deed. Ends with a line break, if there is any."""
    return "".join(_lines(found, style)) or "Nothing was done so far.\n"


def _lines(found: Iterable[Event], style: Style) -> Iterator[str]:
    for report, outcome in found:
        why = "; ".join(one_line(reason) for reason in reasons_of(report, outcome))
        told = style.paint(f"(run {report.run_id}{f': {why}' if why else ''})", "dim")
        yield f"{_time(outcome.finished_at)}  {outcome_line(outcome, style)} {told}\n"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"

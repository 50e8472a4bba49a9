"""Runs that were kept, and what they did, as a time line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from msgspec.structs import replace

from mikrom_reconcile.core.model.run import SUPERVISION, ActionOutcome, RunRecord, UnfinishedRun
from mikrom_reconcile.output.plan_parts import short
from mikrom_reconcile.output.run_text import IN_PROGRESS, left_undone, outcome_line, painted
from mikrom_reconcile.output.sanitize import one_line
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.table import table
from mikrom_reconcile.output.units import age

Event = tuple[RunRecord, ActionOutcome]


def touched(run: RunRecord, name: str) -> bool:
    """Whether a run is called so, or acted on a VM, on a host or in a fleet of that name."""
    return run.run_id == name or any(_concerns(outcome, name) for outcome in run.outcomes)


def settled(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs; one without an end is over where another of its project began later, since they run one at a time."""
    begun: dict[str, datetime] = {}
    for run in runs:
        if not run.origin.startswith(SUPERVISION):
            begun[run.project] = max(run.started_at, begun.get(run.project, run.started_at))
    return [
        replace(run, conclusion=run.conclusion.replace(IN_PROGRESS, "Killed", 1))
        if run.exit_code is None and run.started_at < begun.get(run.project, run.started_at)
        else run
        for run in runs
    ]


def events(runs: Iterable[RunRecord], name: str | None) -> list[Event]:
    """What was done, the oldest first; with a name only to that VM, on that host or in that fleet."""
    found = ((run, outcome) for run in runs for outcome in run.outcomes if name is None or _concerns(outcome, name))
    return sorted(found, key=lambda event: event[1].finished_at)


def _concerns(outcome: ActionOutcome, name: str) -> bool:
    return name in {outcome.vm, outcome.host, outcome.fleet}


def history_text(
    runs: Sequence[RunRecord], now: datetime, style: Style, unfinished: Sequence[UnfinishedRun] = ()
) -> str:
    """One line per run, those that wait or go on first. Ends with a line break."""
    if not runs and not unfinished:
        return "No run so far.\n"
    rows = [
        (
            (_time(run.since), ""),
            (age(run.since, now), "dim"),
            (run.run_id, "dim"),
            (run.origin, ""),
            ("", ""),
            (unfinished_line(run), "red" if run.state == "failed" else "yellow"),
        )
        for run in unfinished
    ]
    rows += [
        (
            (_time(run.finished_at), ""),
            (age(run.finished_at, now), "dim"),
            (run.run_id, "dim"),
            (run.origin, ""),
            (_made_by(run), ""),
            (run.conclusion + _times(run), "yellow" if run.exit_code is None else "red" if run.exit_code else "green"),
        )
        for run in runs
    ]
    return table(("WHEN", "AGE", "RUN", "WHO", "REVISION", "RESULT"), rows, style)


def run_details(run: RunRecord, style: Style) -> str:
    """Everything that is kept of one run. Ends with a line break."""
    head = f"Run {run.run_id} of {_time(run.started_at)}: {run.origin}, project {run.project} at {_made_by(run)}"
    deeds = [f"{_time(outcome.finished_at)}  {_deed(outcome, style)}" for outcome in run.outcomes]
    lines = [one_line(head + _times(run)), *deeds, *left_undone(run, style)]
    return "\n".join([*lines, "", painted(run.conclusion, run.exit_code, style)]) + "\n"


def unfinished_line(run: UnfinishedRun) -> str:
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


def events_text(found: Iterable[Event], style: Style) -> str:
    """One line per deed. Ends with a line break, if there is any."""
    lines = (
        f"{_time(outcome.finished_at)}  {_deed(outcome, style)} "
        + style.paint(one_line(f"[{run.origin}, run {run.run_id} at {_made_by(run)}{_times(run)}]"), "dim")
        for run, outcome in found
    )
    return "".join(f"{line}\n" for line in lines) or "Nothing was done so far.\n"


def _deed(outcome: ActionOutcome, style: Style) -> str:
    """What was done, why, and what it changed."""
    fields = (f"{field.path}: {short(field.before)} → {short(field.after)}" for field in outcome.fields)
    why = one_line("; ".join((*outcome.reasons, *fields)))
    return outcome_line(outcome, style) + (f": {why}" if why else "")


def _made_by(run: RunRecord) -> str:
    """The revision, and who made it."""
    return f"{run.revision or '-'} by {run.author}" if run.author else run.revision or "-"


def _times(run: RunRecord) -> str:
    return f" ({run.times} times since {_time(run.since or run.started_at)})" if run.times > 1 else ""


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}Z"

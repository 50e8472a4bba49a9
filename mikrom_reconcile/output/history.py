"""Runs and what they did, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from msgspec.structs import replace

from mikrom_reconcile.core.model.plan import SUPERVISION, ActionOutcome, RunRecord, UnfinishedRun
from mikrom_reconcile.output.plan import KINDS, short
from mikrom_reconcile.output.run_result import (
    IN_PROGRESS,
    conclusion_text,
    exit_look,
    left_undone,
    outcome_line,
    outcome_row,
)
from mikrom_reconcile.output.text import Document, Style, age, pick, sanitize, table, time_text

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


def events_in(runs: Iterable[RunRecord], name: str | None) -> list[Event]:
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
    lines = [
        (run.since, run, "", unfinished_line(run), "red" if run.state == "failed" else "yellow") for run in unfinished
    ] + [(run.finished_at, run, _made_by(run), run.conclusion + _times(run), exit_look(run.exit_code)) for run in runs]
    rows = [
        (time_text(at), (age(at, now), "dim"), (run.run_id, "dim"), run.origin, revision, (result, look))
        for at, run, revision, result, look in lines
    ]
    return table(("WHEN", "AGE", "RUN", "WHO", "REVISION", "RESULT"), rows, style)


def run_details(run: RunRecord, style: Style) -> str:
    """Everything that is kept of one run. Ends with a line break."""
    head = f"Run {run.run_id} of {time_text(run.started_at)}: {run.origin}, project {run.project} at {_made_by(run)}"
    actions = "".join(f"{_action_line(outcome, style)}\n" for outcome in run.outcomes)
    return f"{sanitize(head + _times(run))}\n{actions}{left_undone(run, style)}\n{conclusion_text(run, style)}\n"


def runs_document(runs: Iterable[RunRecord], unfinished: Sequence[UnfinishedRun]) -> Document:
    """Runs that were kept, the latest first, and those without a report; `summary` is that of their plan."""
    rows = [run_row(run) | {"outcomes": [_action_row(outcome) for outcome in run.outcomes]} for run in runs]
    return {"runs": rows, "unfinished": unfinished}


def run_row(run: RunRecord) -> Document:
    """`exit_code` is null until the run has ended."""
    return {
        **pick(run, "run_id", "origin", "project", "revision", "author", "started_at", "finished_at"),
        "since": run.since or run.started_at,
        "times": run.times,
        "summary": {"unchanged": 0, **dict.fromkeys(KINDS, 0), **run.planned},
        "done": sum(outcome.result == "done" for outcome in run.outcomes),
        **pick(run, "failed", "refused", "unreachable", "conclusion", "exit_code", "source_problem"),
    }


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
    """One line per action. Ends with a line break."""
    lines = (
        f"{_action_line(outcome, style)} "
        + style.paint(sanitize(f"[{run.origin}, run {run.run_id} at {_made_by(run)}{_times(run)}]"), "dim")
        for run, outcome in found
    )
    return "".join(f"{line}\n" for line in lines) or "Nothing was done so far.\n"


def events_document(found: Iterable[Event]) -> Document:
    """What was done, the oldest first."""
    return {
        "events": [
            pick(run, "run_id", "origin", "revision", "author", "times")
            | {"since": run.since or run.started_at}
            | _action_row(outcome)
            for run, outcome in found
        ]
    }


def _action_row(outcome: ActionOutcome) -> Document:
    return pick(outcome, "finished_at", "reasons", "fields") | outcome_row(outcome)


def _action_line(outcome: ActionOutcome, style: Style) -> str:
    fields = (f"{field.path}: {short(field.before)} → {short(field.after)}" for field in outcome.fields)
    why = sanitize("; ".join((*outcome.reasons, *fields)))
    return f"{time_text(outcome.finished_at)}  {outcome_line(outcome, style)}" + (f": {why}" if why else "")


def _made_by(run: RunRecord) -> str:
    return f"{run.revision or '-'} by {run.author}" if run.author else run.revision or "-"


def _times(run: RunRecord) -> str:
    return f" ({run.times} times since {time_text(run.since or run.started_at)})" if run.times > 1 else ""

"""Revisions as `mikrom history` shows them: what was applied, and what its runs did to which VM."""

from collections.abc import Sequence
from datetime import datetime

from mikrom_reconcile.core.model.plan import Revision, RunRecord
from mikrom_reconcile.output.run_result import exit_look, made_by, run_details, run_row, runs_document
from mikrom_reconcile.output.text import Cell, Document, Style, age, pick, sanitize, table, time_text

Revisions = Sequence[Revision]


def revisions_text(revisions: Revisions, now: datetime, style: Style) -> str:
    """One line per revision. Ends with a line break."""
    rows: list[list[Cell]] = []
    for one in revisions:
        when = (time_text(one.started_at), (age(one.started_at, now), "dim"))
        result = (_result(one), exit_look(0 if one.converged else one.exit_code))
        rows.append([(f"{one.project}/{one.number}", "bold"), *when, one.origin, made_by(one), result])
    return table(("REV", "WHEN", "AGE", "WHO", "REVISION", "RESULT"), rows, style)


def revision_details(revision: Revision, runs: Sequence[RunRecord], style: Style) -> str:
    """One revision, and each of its runs with the fields that it changed. Ends with a line break."""
    head = f"Revision {revision.project}/{revision.number}, plan {revision.plan}: {_result(revision)}"
    return "\n".join([style.paint(sanitize(head), "bold"), "", *(run_details(run, style) for run in runs)])


def revisions_document(revisions: Revisions, runs: Sequence[RunRecord]) -> Document:
    """Revisions, newest first; `held` is whether Beat leaves the project alone. `run` is the run that brought it,
    `runs` are those that changed something for a single one.
    """
    names = ("number", "plan", "restores", "converged")
    rows = [pick(one, *names) | {"held": bool(one.held), "run": run_row(one)} for one in revisions]
    return {"revisions": rows, "runs": runs_document(runs, [])["runs"]}


def _result(revision: Revision) -> str:
    back = f"Goes back to {revision.restores}. " if revision.restores else ""
    return f"{back}{revision.conclusion}" + (" Beat leaves it alone." if revision.held else "")

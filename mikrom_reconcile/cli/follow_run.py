"""`mikrom get runs RUN -f`: wait for a run that others carry out, and tell how it went."""

from __future__ import annotations

import sys
import time

from mikrom_reconcile.cli.entry import ERROR
from mikrom_reconcile.cli.terminal import present, show
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.errors import MikromError, UsageError
from mikrom_reconcile.limits import OUTPUT, RUNS
from mikrom_reconcile.output.history import run_details, runs_document, unfinished_line
from mikrom_reconcile.output.text import sanitize


def follow_run(engine: Engine, run_id: str | None, form: str) -> int:
    """Show how far the run is until it has ended, then its recap; its exit code. Raises UsageError for no such run."""
    said = ""
    while True:
        run = next((run for run in engine.unfinished() if run.run_id == run_id), None)
        if run is None:
            break
        line = unfinished_line(run)
        if run.state == "failed":
            raise MikromError(f"run {sanitize(run.run_id)}: {line}")
        if line != said:
            show(f"{sanitize(line)}\n", sys.stderr)
        said = line
        time.sleep(OUTPUT.follow_poll_s)
    kept = next((kept for kept in engine.store.runs(RUNS.kept) if kept.run_id == run_id), None)
    if kept is None:
        raise UsageError(f"-f: no run is called {sanitize(run_id or '')!r}; `mikrom get runs` lists them")
    present(form, lambda: runs_document([kept], []), lambda style: run_details(kept, style))
    return ERROR if kept.exit_code is None else kept.exit_code

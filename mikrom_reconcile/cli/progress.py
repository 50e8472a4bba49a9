"""What an apply is doing right now, on stderr: one moving line for a person, plain lines for a log."""

from __future__ import annotations

import shutil
import sys
import time

from mikrom_reconcile.cli.terminal import is_live, show, style_of
from mikrom_reconcile.core.model.run import ActionOutcome
from mikrom_reconcile.limits import OUTPUT
from mikrom_reconcile.output.run_result import FAILED
from mikrom_reconcile.output.run_text import outcome_line
from mikrom_reconcile.output.text import PLAIN


class Progress:
    """Hears the outcomes of one run. A closed or broken stderr never disturbs the run."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._failed = 0
        self._live = is_live(sys.stderr)
        self._style = style_of(sys.stderr)
        self._drawn_at = 0.0

    def heard(self, outcome: ActionOutcome) -> None:
        """Show one outcome; failures stay on the screen."""
        self._done += 1
        failed = outcome.result in FAILED
        self._failed += failed
        if not self._live:
            show(f"{outcome_line(outcome, self._style)}\n", sys.stderr)
            return
        if failed:
            show(f"\r\x1b[K{outcome_line(outcome, self._style)}\n", sys.stderr)
        if failed or time.monotonic() - self._drawn_at > OUTPUT.redraw_s:
            self._draw(outcome)

    def close(self) -> None:
        """Remove the moving line."""
        if self._live and self._drawn_at:
            show("\r\x1b[K", sys.stderr)

    def _draw(self, outcome: ActionOutcome) -> None:
        self._drawn_at = time.monotonic()
        failed = f", {self._failed} failed" if self._failed else ""
        line = f"{self._done}/{max(self._total, self._done)}{failed} · {outcome_line(outcome, PLAIN)}"
        show(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", sys.stderr)

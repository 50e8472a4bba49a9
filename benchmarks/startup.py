"""How long one waits before anything happens: `mikrom --help` beside a Python that does nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.rows import Goal, Row, cpu_s_of

ROUNDS = 20
MIKROM = str(Path(sys.executable).with_name("mikrom"))


def measure() -> Iterator[Row]:
    """CPU, which is all that a start takes once its files are in memory."""
    pairs = [(cpu_s_of([MIKROM, "--help"]), cpu_s_of([sys.executable, "-c", "pass"])) for _ in range(ROUNDS + 1)][1:]
    ratio = median(ours / other for ours, other in pairs)
    yield Row(
        what="CPU of `mikrom --help` | of `python -c pass`",
        ours=f"{median(ours for ours, _ in pairs) * 1000:.1f} ms",
        other=f"{median(other for _, other in pairs) * 1000:.1f} ms",
        ratio=f"{ratio:.2f}",
        goal=Goal(number=4, bound=3, at_most=True),
        figure=ratio,
    )

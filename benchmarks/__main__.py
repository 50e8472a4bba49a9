"""`python -m benchmarks [--readme] [NAME…]`: what mikrom costs beside the least that could do the same, and beside
Terraform where it is found. Asserts nothing; `--readme` puts the table of what was measured into README.md.

Each benchmark is a module with a `measure()` that yields rows; both sides of a row are measured in turn, in one run,
so that a busy machine slows both. Wall times of a busy machine say little all the same: look at the ratios.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
from datetime import date
from pathlib import Path

from benchmarks import (
    actions,
    c100k,
    dispatch,
    jails,
    nested_web,
    planning,
    scale,
    starts,
    startup,
    supervision,
    thousand,
    traffic,
)
from benchmarks.rows import HEAD, Row, keep_bytecode, line, markdown

BENCHMARKS = {
    "startup": startup.measure,
    "planning": planning.measure,
    "scale": scale.measure,
    "actions": actions.measure,
    "dispatch": dispatch.measure,
    "starts": starts.measure,
    "jails": jails.measure,
    "supervision": supervision.measure,
    "thousand": thousand.measure,
    "traffic": traffic.measure,
    "c100k": c100k.measure,
    "nested_web": nested_web.measure,
}


README = Path("README.md")
BEGIN, END = "<!-- make bench: from here", "<!-- make bench: to here -->"


def main(words: list[str]) -> int:
    """Run the named benchmarks, or all."""
    names = [word for word in words if word != "--readme"] or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 64
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, leaves nothing behind
    keep_bytecode()
    print(line(HEAD))
    rows = []
    try:
        for name in names:
            for row in BENCHMARKS[name]():
                rows.append(row)
                print(line(row.cells()), flush=True)
    except KeyboardInterrupt:
        return 130
    if "--readme" in words:
        _write_down(rows, names)
    return 0


def _write_down(rows: list[Row], names: list[str]) -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = "" if names == list(BENCHMARKS) else f" of {', '.join(names)}"
    made = f"{date.today():%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}{parts}"  # noqa: DTZ011
    README.write_text(f"{before}{BEGIN}, {made} -->\n{markdown(rows)}{END}{after}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

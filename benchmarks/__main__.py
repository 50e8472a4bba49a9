"""`python -m benchmarks [NAME…]`: what mikrom costs beside the least that could do the same. Asserts nothing.

Each benchmark is a module with a `measure()` that yields rows; both sides of a row are measured in turn, in one run,
so that a busy machine slows both. Wall times of a busy machine say little all the same: look at the ratios.
"""

from __future__ import annotations

import signal
import sys

from benchmarks import actions, dispatch, planning, starts, startup, supervision, thousand, traffic
from benchmarks.rows import HEAD

BENCHMARKS = {
    "startup": startup.measure,
    "planning": planning.measure,
    "actions": actions.measure,
    "dispatch": dispatch.measure,
    "starts": starts.measure,
    "supervision": supervision.measure,
    "thousand": thousand.measure,
    "traffic": traffic.measure,
}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all."""
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 64
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, leaves nothing behind
    print(HEAD)
    try:
        for name in names or BENCHMARKS:
            for row in BENCHMARKS[name]():
                print(row.text(), flush=True)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Runs seeds until one fails, shrinks what failed, and says how to have it again."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.run import Ended, shrunk, simulate

SHOWN = 60  # the last lines of what happened


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5000, help="of each seed, before it has to settle")
    parser.add_argument("--without", default="", help="numbers of faults to leave out, with , between")
    asked = parser.parse_args()
    left_out = {int(number) for number in asked.without.split(",") if number}
    began_s, steps = time.monotonic(), 0
    for seed in range(asked.seed, asked.seed + asked.seeds):
        ended = simulate(seed, asked.steps, left_out=left_out)
        steps += ended.steps
        if ended.failure is not None:
            tell(ended if left_out else shrunk(ended, asked.steps), asked.steps)
            return 1
    took_s = time.monotonic() - began_s
    print(f"{asked.seeds} seeds, {steps} steps, {steps / took_s:.0f} a second; digest of the last: {ended.digest}")
    return 0


def tell(ended: Ended, steps: int) -> None:
    print("\n".join(ended.told[-SHOWN:]))
    print(f"\nseed {ended.seed} broke {ended.failure!r}")
    for number, name in ended.faults.items():
        print(f"  fault {number}: {name}")
    missing = ",".join(str(number) for number in range(max(ended.faults, default=0)) if number not in ended.faults)
    without = f" --without {missing}" if missing else ""
    print(f"again: python -m tests.simulation --seed {ended.seed} --steps {steps}{without}")


if __name__ == "__main__":
    sys.exit(main())

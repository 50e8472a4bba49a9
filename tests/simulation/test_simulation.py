"""Seeds of the simulation: what goes wrong at any moment breaks none of the ten guarantees."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.properties.chance import seeds
from tests.simulation.__main__ import tell
from tests.simulation.run import Ended, shrunk, simulate

STEPS = 2500


def holds(seed: int, steps: int) -> Ended:
    ended = simulate(seed, steps)
    if ended.failure is not None:
        tell(shrunk(ended, steps), steps)
        raise ended.failure
    return ended


@pytest.mark.parametrize("seed", seeds(48))
def test_whatever_happens_the_guarantees_hold_and_in_the_end_all_is_as_wanted(seed: int) -> None:
    holds(seed, STEPS)


@pytest.mark.soak
def test_they_hold_for_a_million_steps_of_a_thousand_seeds() -> None:
    assert sum(holds(seed, 1000).steps for seed in range(1000)) > 1_000_000


@pytest.mark.soak
def test_they_hold_in_long_lives() -> None:
    for seed in range(20):
        holds(seed, 50_000)


def test_the_same_seed_gives_the_same_bytes_in_any_process() -> None:
    ours = simulate(3, 1000)
    assert simulate(3, 1000) == ours
    program = "from tests.simulation.run import simulate; print(simulate(3, 1000).digest)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    theirs = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert theirs.stdout.strip() == ours.digest

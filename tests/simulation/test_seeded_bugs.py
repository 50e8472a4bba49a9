"""The judge catches bugs, each by the guarantee that it breaks: else its silence would prove nothing."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import BUGS, seeded
from tests.simulation.run import shrunk, simulate

QUICK = {
    "what is remembered of dark hosts is forgotten", "protection is a word", "a log tells a secret",
    "an order has an effect however late it comes",
}  # fmt: skip
SEEDS = 400


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in BUGS]
)
def test_a_bug_is_caught_by_the_guarantee_that_it_breaks(name: str) -> None:
    with seeded(BUGS[name]):
        assert any(simulate(seed, 3000).guarantee == BUGS[name].guarantee for seed in range(SEEDS))


def test_every_bug_has_a_function_to_be_in() -> None:
    assert len(BUGS) >= 20
    for bug in BUGS.values():
        with seeded(bug):
            pass


def test_a_failure_is_shrunk_to_the_faults_that_it_needs() -> None:
    with seeded(BUGS["what ought to be gone stays"]):
        found = next(ended for seed in range(SEEDS) if (ended := simulate(seed, 2000)).failure)
        least = shrunk(found, 2000, tries=30)
    assert least.guarantee == found.guarantee
    assert len(least.faults) < len(found.faults)

"""One seed from its beginning to its end, what made it fail, and the fewest faults that still do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from random import Random

from tests.simulation.faults import FAULTS
from tests.simulation.judge import Broken
from tests.simulation.world import World

FAULT_INTERVAL_S = 15.0


@dataclass(frozen=True)
class Ended:
    """How a seed ended. `faults` are those that happened, by number."""

    seed: int
    digest: str
    steps: int
    faults: dict[int, str]
    failure: BaseException | None
    told: tuple[str, ...]

    @property
    def guarantee(self) -> str:
        """What does not hold, "" if all does."""
        if self.failure is None:
            return ""
        return self.failure.guarantee if isinstance(self.failure, Broken) else type(self.failure).__name__


def simulate(seed: int, steps: int, *, left_out: Collection[int] = ()) -> Ended:
    """So many steps with faults, then as many as it takes to settle. `left_out` are numbers of faults to leave out.

    Which fault comes when, and what it does, depends on the seed and its number: leaving one out changes no other.
    """
    world = World(seed, hosts=2 + seed % 3, controls=1 + seed % 2)
    happened: dict[int, str] = {}
    failure: BaseException | None = None
    with world.live():
        try:
            world.begin()
            stop = _with_faults(world, seed, left_out, happened)
            world.clock.run(steps=steps)
            stop()
            world.settle()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, its seed tells how to have it again
            failure = error
    return Ended(seed, world.clock.digest(), world.clock.steps, happened, failure, tuple(world.clock.told))


def _with_faults(world: World, seed: int, left_out: Collection[int], happened: dict[int, str]) -> Callable[[], None]:
    times, drawn, is_over = Random(f"{seed} faults"), 0, False
    kinds = times.sample(FAULTS, 8) if seed % 2 else FAULTS  # a life with few kinds of faults goes deeper into each

    def fault() -> None:
        nonlocal drawn
        if is_over:
            return
        world.fate = Random(f"{seed} {drawn}")
        act = world.fate.choice(kinds)
        if drawn not in left_out:
            happened[drawn] = act.__name__
            world.clock.say(f"fault {drawn}: {act.__name__}")
            act(world)
        drawn += 1
        world.clock.at(times.expovariate(1 / FAULT_INTERVAL_S), fault)

    def stop() -> None:
        nonlocal is_over
        is_over = True

    world.clock.at(times.expovariate(1 / FAULT_INTERVAL_S), fault)
    return stop


def shrunk(found: Ended, steps: int, *, tries: int = 300) -> Ended:
    """The same failure with fewer faults: halves, quarters and single ones are left out while it still happens."""
    best, left_out = found, set[int]()
    size = len(found.faults)
    while size := size // 2:
        numbers = sorted(best.faults)
        for start in range(0, len(numbers), size):
            tried = left_out | set(numbers[start : start + size])
            if tries <= 0:
                return best
            tries -= 1
            ended = simulate(found.seed, steps, left_out=tried)
            if ended.guarantee == found.guarantee:
                best, left_out = ended, tried
    return best

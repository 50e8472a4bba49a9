"""One VM on one host, whose worker is killed, or whose power fails, before each of its system calls in turn."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from tests.simulation.specs import Wanted
from tests.simulation.world import World

ONE = Wanted(hosts=(("hv1", ""),), web=1, api=0, db=0, vault=0)
Act = Callable[[World], None]


def change(**fields: object) -> Act:
    def act(world: World) -> None:
        world.change(**fields)
        world.controls[0].asked("shop", world.wanted)

    return act


def by_name(verb: str) -> Act:
    return lambda world: world.controls[0].asked("shop", world.wanted, verb=verb, names=("web-000",))


def destroy(world: World) -> None:
    world.controls[0].asked("shop", world.wanted, destroy=True)


def die(world: World) -> None:
    machine = world.machines["hv1"]
    machine.end(machine.vmms["web-000"], "crashed", "by itself")


ACTS: dict[str, tuple[Act, ...]] = {
    "create": (change(web=1),), "restart with another spec": (change(web=1), change(mem_size_mib=32)),
    "pause": (change(web=1), by_name("pause")), "resume": (change(web=1), by_name("pause"), by_name("resume")),
    "stop": (change(web=1), by_name("stop")), "start": (change(web=1), by_name("stop"), by_name("start")),
    "delete": (change(web=1), destroy), "create anew": (change(web=1), destroy, change(web=1)),
    "come back by itself": (change(web=1), die), "create with an address": (change(api=1),),
    "create with a drive": (change(db=1),),
}  # fmt: skip


def survives(acts: tuple[Act, ...], number: int, *, power_fails: bool) -> bool:
    """The last of `acts`, in which the host dies before its system call `number`; False when it has fewer."""
    world = World(number, hosts=1, controls=1)
    clock, machine = world.clock, world.machines["hv1"]
    world.interval_s, world.rescan_s = 1000.0, 1000.0
    with world.live():
        world.change(hosts=ONE.hosts, web=0, api=0, db=0, vault=0)
        world.begin()
        clock.run(until_s=60.0)
        for act in acts[:-1]:
            act(world)
            clock.run(until_s=clock.now + 30.0)
        worker = machine.worker
        assert worker is not None
        worker.dies_at, worker.power_fails = worker.calls + number, power_fails
        acts[-1](world)
        clock.run(until_s=clock.now + 30.0)
        was_reached = not worker.alive
        world.settle()
    return was_reached


def every(step: int) -> list[object]:
    return [pytest.param(step), pytest.param(1, marks=pytest.mark.soak)]


@pytest.mark.parametrize("step", every(11))
@pytest.mark.parametrize("name", ACTS)
def test_whenever_its_host_dies_the_vm_becomes_what_it_is_to_be(name: str, step: int) -> None:
    for power_fails in (False, True):
        last = next(number for number in count(1, step) if not survives(ACTS[name], number, power_fails=power_fails))
        assert last > step, "it made no system call"

"""What is planned from the fleets that differ alone is what is planned from everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest

from mikrom_reconcile.control.reconcile import Reconciler
from mikrom_reconcile.core.model.desired import Machine
from mikrom_reconcile.core.model.observed import HostView, ObserveQuery, Phase, Placements
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.core.planning.known_question import NO_CACHE, Cache
from mikrom_reconcile.core.specs.load import Specs
from mikrom_reconcile.wiring import schemas
from tests.properties.chance import HOSTS, PROJECT, Fleet, Project
from tests.properties.test_planner import converge
from tests.properties.world import World

FLEETS = tuple(Fleet(name, 5, 16, "running", "20%", allow_empty=False) for name in ("db", "web"))
SEEDS, CASES = 12, 12
SPECS = Project(whole=True, fleets=FLEETS)


class Kept(dict[str, bytes]):
    """A cache in memory."""

    def put(self, key: str, content: bytes) -> None:
        self[key] = content


class OneStore:
    """A store that remembers one project."""

    def __init__(self, placements: Placements) -> None:
        self.kept = placements

    def placements(self, project: str) -> Placements:
        return self.kept if project == PROJECT else Placements()


class Clock:
    def now(self) -> datetime:
        return datetime(2026, 11, 22, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing to wait for")


class Hosts:
    """The hosts of a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def names(self, *, dark: bool = True) -> tuple[str, ...]:
        return HOSTS

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        yield from self.world.observe(dict(queries)).hosts


def engine(world: World, memory: Placements, cache: Cache) -> Reconciler:
    parts: dict[str, Any] = {"hosts": Hosts(world), "store": OneStore(memory), "clock": Clock()}
    return Reconciler(here=HOSTS[0], schemas=schemas(), cache=cache, **parts)


def request(project: Project = SPECS, **fields: Any) -> RunRequest:
    return RunRequest(run_id="r", origin="a test", tree=project.tree(), **fields)


@pytest.fixture
def settled() -> tuple[World, Placements]:
    world = World(hosts={host: {} for host in HOSTS})
    plan, memory = converge(SPECS, world, Placements(covers=HOSTS), Random(1))
    assert plan.changes == ()
    return world, memory


def both(world: World, memory: Placements, cache: Kept, asked: RunRequest) -> tuple[Plan, Plan]:
    return engine(world, memory, cache).plan(asked), engine(world, memory, NO_CACHE).plan(asked)


def test_when_nothing_moved_the_specs_are_not_even_read(
    settled: tuple[World, Placements], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, memory = settled
    cache = Kept()
    first, plain = both(world, memory, cache, request())
    assert first == plain
    monkeypatch.setattr(Reconciler, "_specs", lambda *_: pytest.fail("the specs were read"))
    later = msgspec.structs.replace(request(), run_id="another", origin="somebody else")
    assert engine(world, memory, cache).plan(later) == first


def crashed(world: World, memory: Placements) -> Placements:
    vm = world.hosts[memory.vms["web-001"]]["web-001"]
    world.hosts[memory.vms["web-001"]]["web-001"] = type(vm)(**(vars(vm) | {"phase": "crashed"}))
    return memory


def gone(world: World, memory: Placements) -> Placements:
    del world.hosts[memory.vms["web-001"]]["web-001"]
    return memory


def changed(world: World, memory: Placements) -> Placements:
    vm = world.hosts[memory.vms["db-000"]]["db-000"]
    spec = msgspec.structs.replace(vm.spec, machine=Machine(vcpu_count=1, mem_size_mib=99))
    world.hosts[memory.vms["db-000"]]["db-000"] = type(vm)(**(vars(vm) | {"spec": spec, "spec_digest": "1:x"}))
    return memory


def unwanted(world: World, memory: Placements) -> Placements:
    vm = world.hosts[memory.vms["web-001"]]["web-001"]
    world.hosts[HOSTS[0]]["old-000"] = type(vm)(**(vars(vm) | {"fleet": "old"}))
    return memory


def twice(world: World, memory: Placements) -> Placements:
    here = memory.vms["web-001"]
    other = next(host for host in HOSTS if host != here)
    world.hosts[other]["web-001"] = world.hosts[here]["web-001"]
    return memory


def dark(world: World, memory: Placements) -> Placements:
    world.dark.add(HOSTS[1])
    return memory


def forgotten(world: World, memory: Placements) -> Placements:
    return Placements()


@pytest.mark.parametrize("move", [crashed, gone, changed, unwanted, twice, dark, forgotten])
def test_whatever_moves_the_plan_is_made_anew(
    move: Callable[[World, Placements], Placements], settled: tuple[World, Placements]
) -> None:
    world, memory = settled
    cache = Kept()
    both(world, memory, cache, request())
    memory = move(world, memory)
    with_cache, without = both(world, memory, cache, request())
    assert with_cache == without
    assert with_cache.changes or move is forgotten


@pytest.mark.parametrize(
    "asked",
    [
        request(Project(whole=True, fleets=(*FLEETS, Fleet("api", 1, 16, "running", "20%", allow_empty=False)))),
        request(Project(whole=True, fleets=FLEETS[:1])),
        request(Project(whole=False, fleets=FLEETS)),
        request(destroy=True),
        request(without_hosts=(HOSTS[1],)),
        request(limit="web"),
    ],
)
def test_another_request_has_a_plan_of_its_own(asked: RunRequest, settled: tuple[World, Placements]) -> None:
    world, memory = settled
    cache = Kept()
    both(world, memory, cache, request())
    for _ in range(2):
        with_cache, without = both(world, memory, cache, asked)
        assert with_cache == without


def disturbed(chance: Random, world: World) -> None:
    """Something happens to a VM: mostly what needs a new look at its fleet alone."""
    host = chance.choice([host for host in HOSTS if world.hosts[host]])
    name = chance.choice(sorted(world.hosts[host]))
    vm = world.hosts[host][name]
    match chance.randrange(12):
        case 0:
            del world.hosts[host][name]
        case 1:
            world.hosts[chance.choice(HOSTS)][name] = replace(vm, token=vm.token + chance.randrange(2))
        case 2:
            world.hosts[host][f"{name}9"] = replace(vm, phase=chance.choice(("running", "crashed")))
        case 3:
            spec = msgspec.structs.replace(vm.spec, machine=Machine(vcpu_count=1, mem_size_mib=99))
            world.hosts[host][name] = replace(vm, spec=spec, spec_digest="1:x")
        case _:
            phase: Phase = chance.choice(("crashed", "exited", "paused", "stopped", "unresponsive", "parked"))
            world.hosts[host][name] = replace(vm, phase=phase)


def test_whatever_happens_the_plan_is_that_of_a_look_at_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """In most cases without one."""
    reads: list[RunRequest] = []
    read = Reconciler._specs

    def counted(self: Reconciler, request: RunRequest) -> Specs:
        reads.append(request)
        return read(self, request)

    monkeypatch.setattr(Reconciler, "_specs", counted)
    for seed in range(SEEDS):
        chance = Random(seed)
        fleets = tuple(
            Fleet(name, chance.randint(1, 6), 16, "running", "20%", allow_empty=False) for name in ("a", "b", "c", "d")
        )
        project = Project(whole=True, fleets=fleets)
        world = World(hosts={host: {} for host in HOSTS})
        _, memory = converge(project, world, Placements(covers=HOSTS), chance)
        cache = Kept()
        both(world, memory, cache, request(project))
        for _ in range(CASES):
            there = world.copy()
            for _ in range(chance.randint(1, 3)):
                disturbed(chance, there)
            with_cache, without = both(there, memory, cache, request(project))
            assert with_cache == without
    without_cache = SEEDS * (CASES + 1)
    assert len(reads) - without_cache - SEEDS < SEEDS * CASES // 2


def test_what_another_release_remembered_is_not_believed(settled: tuple[World, Placements]) -> None:
    world, memory = settled
    cache = Kept()
    both(world, memory, cache, request())
    for key in cache:
        cache[key] = b"\xc1 no msgpack"
    with_cache, without = both(world, memory, cache, request())
    assert with_cache == without

"""What is planned from what a process has kept of a project is what is planned from everything."""

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
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.observed import HostView, ObserveQuery, Phase, Placements
from mikrom_reconcile.core.model.plan import Plan, RunRequest
from mikrom_reconcile.core.specs.load import Specs
from mikrom_reconcile.wiring import schemas
from tests.properties.chance import HOSTS, PROJECT, Fleet, Project
from tests.properties.test_planner import converge
from tests.properties.world import World

FLEETS = tuple(Fleet(name, 5, 16, "running", "20%", allow_empty=False) for name in ("db", "web"))
SEEDS, CASES = 12, 12
SPECS = Project(whole=True, fleets=FLEETS)


class OneStore:
    """A store that remembers one project."""

    def __init__(self, placements: Placements) -> None:
        self.kept = placements

    def placements(self, project: str) -> Placements:
        return self.kept if project == PROJECT else Placements()

    def shelf(self, shelf: str) -> list[bytes]:
        return []


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

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        return HOSTS

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        yield from self.world.observe(dict(queries)).hosts


class Engine(Reconciler):
    """Counts how often it reads specs."""

    def __init__(self, world: World, memory: Placements) -> None:
        super().__init__(here=HOSTS[0], hosts=Hosts(world), store=OneStore(memory), clock=Clock(), schemas=schemas())  # type: ignore[arg-type]
        self.reads = 0

    def put(self, world: World, memory: Placements) -> None:
        """Whatever was before, this is how things are."""
        self.hosts, self.store = Hosts(world), OneStore(memory)  # type: ignore[assignment]

    def _read(self, request: RunRequest) -> Specs:
        self.reads += 1
        return super()._read(request)


def request(project: Project = SPECS, **fields: Any) -> RunRequest:
    return RunRequest(run_id="r", origin="a test", tree=project.tree(), **fields)


@pytest.fixture
def settled() -> tuple[World, Placements]:
    world = World(hosts={host: {} for host in HOSTS})
    plan, memory = converge(SPECS, world, Placements(covers=HOSTS), Random(1))
    assert plan.changes == ()
    return world, memory


@pytest.fixture
def engine(settled: tuple[World, Placements]) -> Engine:
    """One that has planned the project before."""
    kept = Engine(*settled)
    assert kept.plan(request()).changes == ()
    return kept


def same_plan(engine: Engine, world: World, memory: Placements, asked: RunRequest) -> Plan:
    engine.put(world, memory)
    plan = engine.plan(asked)
    assert plan == Engine(world, memory).plan(asked)
    return plan


def test_where_nothing_changed_the_specs_are_read_once(engine: Engine, settled: tuple[World, Placements]) -> None:
    for _ in range(3):
        later = msgspec.structs.replace(request(), run_id="another", origin="somebody else")
        assert same_plan(engine, *settled, later).changes == ()
    assert engine.reads == 1


@pytest.mark.parametrize("value", [1, 1.0, True, "1"])
def test_variables_that_python_takes_for_equal_are_read_anew(value: object) -> None:
    template = "{image: hello, boot_args: 'x=${a}'}"
    text = f"apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {{name: web}}\nspec: {{replicas: 1, template: {template}}}\n"
    tree = SourceTree(revision="r", files=(SourceFile(path="web.yml", text=text),))
    world = World(hosts={host: {} for host in HOSTS})
    engine = Engine(world, Placements())
    engine.plan(RunRequest(run_id="r", origin="a test", tree=tree, extra_vars={"a": 1}))
    same_plan(engine, world, Placements(), RunRequest(run_id="r", origin="a test", tree=tree, extra_vars={"a": value}))
    assert engine.reads == (1 if type(value) is int else 2)


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
def test_whatever_moves_is_planned_as_if_nothing_had_been_kept(
    move: Callable[[World, Placements], Placements], engine: Engine, settled: tuple[World, Placements]
) -> None:
    world, memory = settled
    memory = move(world, memory)
    plan = same_plan(engine, world, memory, request())
    assert plan.changes or move is forgotten
    assert engine.reads == 1


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
def test_another_request_has_a_plan_of_its_own(
    asked: RunRequest, engine: Engine, settled: tuple[World, Placements]
) -> None:
    for each in (asked, asked, request()):
        same_plan(engine, *settled, each)


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
            phase: Phase = chance.choice(("crashed", "exited", "paused", "stopped", "unresponsive", "crash_loop"))
            world.hosts[host][name] = replace(vm, phase=phase)


def test_whatever_happens_the_plan_is_that_of_a_process_that_has_kept_nothing() -> None:
    for seed in range(SEEDS):
        chance = Random(seed)
        fleets = tuple(
            Fleet(name, chance.randint(1, 6), 16, "running", "20%", allow_empty=False) for name in ("a", "b", "c", "d")
        )
        project = Project(whole=True, fleets=fleets)
        world = World(hosts={host: {} for host in HOSTS})
        _, memory = converge(project, world, Placements(covers=HOSTS), chance)
        engine = Engine(world, memory)
        for _ in range(CASES):
            there = world.copy()
            for _ in range(chance.randint(1, 3)):
                disturbed(chance, there)
            same_plan(engine, there, memory, request(project))
        assert engine.reads == 1

"""Properties of the planner: what must hold for any specs, any world, any order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from random import Random
from typing import TypeVar

import msgspec
import pytest

from mikrom_reconcile.core.model.observed import ObservedState, ObserveQuery, Placements
from mikrom_reconcile.core.model.plan import Plan, RunOverrides
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.core.planning.context import PlanResult
from mikrom_reconcile.core.planning.planner import prepare
from mikrom_reconcile.wiring import schemas
from tests.properties.chance import HOSTS, Project, memory_of, project_of, seeds, world_of
from tests.properties.world import World, decided

T = TypeVar("T")
EVERY_SEED = pytest.mark.parametrize("chance", seeds(200), indirect=True)
UNLIMITED = RunOverrides(prune_max="100%")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> Random:
    return Random(request.param)


def shuffled(chance: Random, items: Iterable[T]) -> list[T]:
    ordered = list(items)
    return chance.sample(ordered, len(ordered))


def look(project: Project, world: World, memory: Placements, limits: RunOverrides = UNLIMITED) -> PlanResult:
    asked = prepare(validate_specs(project.tree(), schemas(), here="localhost"), memory, here=HOSTS[0])
    return decided(asked, world.observe, limits)


def converge(project: Project, world: World, memory: Placements, chance: Random) -> tuple[Plan, Placements]:
    """Pass after pass, the actions of each in any order, until a plan has none."""
    for _ in range(40):
        decision = look(project, world, memory)
        memory = decision.placements
        if not decision.plan.actions:
            return decision.plan, memory
        for action in shuffled(chance, decision.plan.actions):
            assert world.act(action) == "done"
    raise AssertionError("no end in 40 passes")


@EVERY_SEED
def test_applying_plans_converges_and_then_there_is_nothing_left_to_do(chance: Random) -> None:
    project = project_of(chance)
    world = world_of(chance, project)
    memory = memory_of(chance, world, project.name)
    before = world.copy()
    plan, memory = converge(project, world, memory, chance)

    excused = {change.name for change in plan.changes}
    stuck = {change.fleet for change in plan.changes if change.kind == "blocked"}
    for change in plan.changes:  # VMs that cannot be read use the disruption share up
        assert change.kind == "blocked" or (change.kind == "wait" and change.fleet in stuck)
    for fleet in project.fleets:
        for name in fleet.names():
            if name in excused:
                continue
            copies = [host for host in world.copies(name, project.name) if host not in world.dark]
            if fleet.state == "absent":
                assert copies == []
                continue
            (host,) = copies
            truth = world.hosts[host][name]
            assert truth.phase == fleet.state
            assert truth.spec == fleet.spec()
            assert truth.fleet == fleet.name
            assert not truth.drift
    # what is excused has a reason that the truth before bears out
    for name in [change.name for change in plan.changes if change.kind == "blocked"]:
        taken = [host for host in HOSTS if host not in world.dark and name in before.hosts[host]
                 and before.hosts[host][name].project != project.name]  # fmt: skip
        assert taken or world.dark
    again = look(project, world, memory)
    assert [(it.name, it.kind, it.rule) for it in again.plan.changes] == [
        (it.name, it.kind, it.rule) for it in plan.changes
    ]
    assert look(project, world, again.placements).plan == again.plan


@EVERY_SEED
def test_what_is_not_wanted_is_gone_and_what_is_not_ours_is_untouched(chance: Random) -> None:
    project = project_of(chance)
    world = world_of(chance, project)
    before = world.copy()
    converge(project, world, memory_of(chance, world, project.name), chance)

    wanted = {name for fleet in project.fleets for name in fleet.names() if fleet.state != "absent"}
    spoken_for = {fleet.name for fleet in project.fleets}
    for host, vms in before.hosts.items():
        for name, truth in vms.items():
            after = world.hosts[host].get(name)
            if truth.project != project.name or host in world.dark:
                assert after == truth, "a VM that is not ours, or on a dark host, was touched"
            elif name not in wanted:
                stays = not project.whole and truth.fleet not in spoken_for
                assert (after == truth) if stays else (after is None)


@EVERY_SEED
def test_a_dark_hosts_vms_are_neither_made_elsewhere_nor_deleted(chance: Random) -> None:
    project = project_of(chance)
    world = world_of(chance, project)
    hidden = {name for host in world.dark for name, truth in world.hosts[host].items() if truth.project == project.name}
    seen = {name for host in HOSTS if host not in world.dark for name in world.hosts[host]}
    converge(project, world, memory_of(chance, world, project.name), chance)
    made = {action.vm for action in world.acted if action.verb == "create"}
    assert not (made & hidden - seen)
    assert all(action.host not in world.dark for action in world.acted)


@EVERY_SEED
def test_an_unattended_run_never_removes_more_than_the_share_nor_the_last_vm(chance: Random) -> None:
    project = project_of(chance)
    world = world_of(chance, project)
    plan = look(project, world, memory_of(chance, world, project.name), RunOverrides()).plan

    owned: Counter[str] = Counter()
    loosest: dict[str, list[int | str]] = defaultdict(list)
    may_empty: dict[str, bool] = defaultdict(bool)
    for host in set(HOSTS) - world.dark:
        for truth in world.hosts[host].values():
            if truth.project == project.name:
                owned[truth.fleet] += 1
                loosest[truth.fleet].append(truth.policy.prune_max)
                may_empty[truth.fleet] |= truth.policy.allow_empty
    for fleet in project.fleets:  # for a fleet that vanished, what its hosts recorded counts
        loosest[fleet.name], may_empty[fleet.name] = [fleet.prune_max], fleet.allow_empty
    removed = Counter(action.desired is None and change_fleet(plan, action.vm, action.host) for action in plan.actions)
    for name, number in removed.items():
        if not name:
            continue
        assert number <= max(budget(share, owned[name]) for share in loosest[name])
        assert number < owned[name] or may_empty[name]


def budget(share: int | str, total: int) -> int:
    if isinstance(share, int):
        return share
    percent = int(share[:-1])
    return 0 if percent == 0 else max(1, total * percent // 100)


def change_fleet(plan: Plan, vm: str, host: str) -> str:
    return next(change.fleet for change in plan.changes if (change.name, change.host) == (vm, host))


@EVERY_SEED
def test_no_pass_takes_down_more_than_a_tenth_of_a_fleet(chance: Random) -> None:
    project = project_of(chance)
    world = world_of(chance, project)
    plan = look(project, world, memory_of(chance, world, project.name)).plan
    for fleet in project.fleets:
        if fleet.state != "running":
            continue
        healthy = {
            (name, host)
            for name in fleet.names()
            for host in world.copies(name, project.name)
            if host not in world.dark and world.hosts[host][name].phase == "running"
        }
        restarted = [a for a in plan.actions if a.verb == "restart" and (a.vm, a.host) in healthy]
        up = {name for name, _ in healthy}
        down = sum(name not in up for name in fleet.names())
        assert not restarted or len(restarted) + down <= max(1, fleet.replicas // 10)


@EVERY_SEED
def test_equal_input_in_any_order_gives_equal_bytes(chance: Random) -> None:
    project = project_of(chance)
    world = world_of(chance, project)
    memory = memory_of(chance, world, project.name)
    first = msgspec.json.encode(look(project, world, memory, RunOverrides()))

    order = shuffled(chance, range(len(project.documents())))
    specs = validate_specs(project.tree(list(order)), schemas(), here="localhost")
    remembered = dict(shuffled(chance, memory.vms.items()))
    asked = prepare(specs, Placements(vms=remembered, covers=memory.covers), here=HOSTS[0])

    def observe(queries: dict[str, ObserveQuery]) -> ObservedState:
        state = world.observe(queries)
        views = [
            view
            if view.report is None
            else msgspec.structs.replace(
                view, report=msgspec.structs.replace(view.report, vms=tuple(shuffled(chance, view.report.vms)))
            )
            for view in shuffled(chance, state.hosts)
        ]
        return ObservedState(taken_at=state.taken_at, hosts=tuple(views))

    assert msgspec.json.encode(decided(asked, observe, RunOverrides())) == first


@EVERY_SEED
def test_a_late_or_doubled_action_changes_nothing(chance: Random) -> None:
    project = project_of(chance)
    world = world_of(chance, project)
    plan = look(project, world, Placements(covers=HOSTS)).plan
    if not (plan.actions):
        return
    for action in plan.actions:
        assert world.act(action) == "done"
    after = world.copy()
    for action in shuffled(chance, plan.actions):
        if action.verb != "delete":
            assert world.act(action) == "stale"
    assert world.hosts == after.hosts


@EVERY_SEED
def test_once_converged_hosts_are_asked_only_for_digests(chance: Random) -> None:
    project = project_of(chance)
    world = world_of(chance, project)
    if world.dark:
        return
    plan, memory = converge(project, world, Placements(covers=HOSTS), chance)
    if plan.changes:
        return
    asked = prepare(validate_specs(project.tree(), schemas(), here="localhost"), memory, here=HOSTS[0])
    views = world.observe(asked.queries).hosts
    ours = {fleet.name for fleet in project.fleets}
    rows = [row for view in views if view.report for row in view.report.vms if row.fleet in ours]
    assert [row for row in rows if row.project == project.name] == []

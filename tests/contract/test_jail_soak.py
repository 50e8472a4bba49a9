"""A hundred jailed microVMs on one bridge, in a network namespace of their own: through everything, and then gone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.desired import DesiredVM, RateLimiter
from mikrom_reconcile.core.model.observed import ObservedVM, ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, VMChange
from mikrom_reconcile.core.planning.context import actions_of
from mikrom_reconcile.core.planning.rules import DiffInput, judge
from mikrom_reconcile.system.netlink import Netlink
from tests.contract.drivers import JailBench, wait_until
from tests.contract.hosts import KEPT, Host
from tests.contract.test_networks import devices, wanted
from tests.netns import own_namespace

pytestmark = [
    *(pytest.mark.kvm, pytest.mark.jail, pytest.mark.soak, pytest.mark.timeout(900)),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
VMS = 100
KILLS = 30
SEED = 20261122

Fleet = dict[str, DesiredVM]


@pytest.fixture
def host(jailed: JailBench, own_environment: Path) -> Iterator[Host]:
    jailed.answer_s = 5.0  # sixteen at once, on what may be two CPUs
    with own_namespace():
        yield Host(jailed, own_environment)


def fleet(size: int, mbit: int | None = None) -> Fleet:
    names = (f"web-{number:03d}" for number in range(size))
    limiter = RateLimiter(bandwidth_mbit=mbit)
    return {name: wanted(name, f"10.0.0.{at}", rate_limiter=limiter) for at, name in enumerate(names, 10)}


def look(host: Host) -> dict[str, ObservedVM]:
    return {row.name: row for row in host.agent.observe(ObserveQuery()).vms}


def run(host: Host, wishes: Fleet) -> list[ActionOutcome]:
    """What a run does: look, order, and all at once."""
    host.token += 1
    seen = look(host)
    changes = [
        judge(DiffInput(desired=wishes.get(vm), observed=seen.get(vm))) for vm in sorted(wishes.keys() | seen.keys())
    ]
    actions = actions_of([change for change in changes if isinstance(change, VMChange)], "shop")
    orders = [Order(run_id=f"run-{host.token}", token=host.token, action=action) for action in actions]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(host.agent.execute, orders))


def verbs(outcomes: list[ActionOutcome]) -> list[str]:
    assert {outcome.result for outcome in outcomes} <= {"done"}, [
        outcome.error for outcome in outcomes if outcome.error
    ]
    return [outcome.verb for outcome in outcomes]


def assert_up(host: Host, jailed: JailBench, size: int) -> None:
    seen = look(host)
    assert {(vm.phase, vm.drift) for vm in seen.values()} == {("running", ())}
    assert sorted(str(vm.pid) for vm in seen.values()) == sorted(map(str, jailed.all_pids()))
    assert len({vm.addresses["eth0"] for vm in seen.values()}) == len(seen) == size
    links = devices().values()
    bridge = next(link.index for link in links if not link.master)
    assert [link.master for link in links if link.master] == [bridge] * size


def assert_gone(host: Host, jailed: JailBench) -> None:
    assert (look(host), jailed.all_pids(), devices()) == ({}, [], {})
    assert [path for path in jailed.leftovers() if not path.is_relative_to(host.state_dir)] == []
    kept = {*KEPT, "released"}  # addresses in their cooldown
    assert [path for path in jailed.leftovers() if path.relative_to(host.state_dir).parts[0] not in kept] == []
    assert [*(host.state_dir / "uids").iterdir(), *(host.state_dir / "vms").iterdir()] == []
    assert list(host.records.list()) == []


def test_a_hundred_are_created_changed_killed_repaired_and_deleted(host: Host, jailed: JailBench) -> None:
    assert verbs(run(host, fleet(VMS))) == ["create"] * VMS
    assert_up(host, jailed, VMS)
    pids = sorted(jailed.all_pids())
    limited = fleet(VMS, mbit=8)
    assert verbs(run(host, limited)) == ["update"] * VMS
    assert sorted(jailed.all_pids()) == pids

    dice = random.Random(SEED)
    for vm in dice.sample(sorted(limited), 30):
        jailed.kill(vm)
    taps = [link for link in devices().values() if link.master]
    with Netlink() as kernel:
        for tap in dice.sample(taps, 20):
            kernel.delete(tap.index)
    assert set(verbs(run(host, limited))) <= {"start", "restart"}
    assert_up(host, jailed, VMS)
    assert run(host, limited) == []

    assert verbs(run(host, {})) == ["delete"] * VMS
    assert_gone(host, jailed)


def test_killed_at_seeded_points_all_of_it_is_mended_and_goes(host: Host, jailed: JailBench) -> None:
    dice = random.Random(SEED)
    wishes: list[Fleet] = [fleet(30), fleet(30, mbit=8), fleet(15), {}]
    for number in range(KILLS):
        child = os.fork()
        if child == 0:
            try:
                run(host, wishes[number % len(wishes)])
            finally:
                os._exit(0)
        time.sleep(dice.uniform(0.0, 0.8))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        host.token += 1
    wait_until(lambda: not run(host, fleet(30)), "a fleet that is as wanted")
    assert_up(host, jailed, 30)
    wait_until(lambda: not run(host, {}), "the end of all")
    assert_gone(host, jailed)

"""Rollouts attacked tick after tick: hosts come and go, VMs die, starts fail, controllers are killed amid a pass and
memories get lost. What may happen is judged by what is really there, with batches that are counted here once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest

from mikrom_reconcile.core.model.observed import Attempt, Placements
from mikrom_reconcile.core.model.plan import Action, Plan, RunOverrides
from tests.properties.chance import seeds
from tests.properties.test_guards import HOSTS, SHOP, Checkout, document, inventory
from tests.properties.world import Truth, World

BAD = "bad"
MIN_HEALTHY_S = 10.0
SERIALS: list[list[int | str]] = [[1], [2], ["10%"], [1, 2], [1, "5%", "50%"], ["100%"]]


@dataclass
class Site(World):
    """A world in which time passes, and in which some starts fail: those of `failing` VMs with the spec `BAD`.

    What is `refused` is refused before anything is done.
    """

    failing: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def act(self, action: Action) -> str:
        before = self.hosts[action.host].get(action.vm)
        bad = action.desired is not None and action.desired.spec.boot_args == BAD and action.verb != "update"
        if action.desired is None or not bad or action.vm not in self.failing | self.refused:
            return super().act(action)
        digest = action.desired.spec_digest
        if action.vm in self.refused:
            assert before is not None
            self.hosts[action.host][action.vm] = replace(before, attempt=Attempt(spec_digest=digest, count=1))
            return "done"
        done = super().act(action)
        if done == "done":
            truth = self.hosts[action.host][action.vm]
            self.hosts[action.host][action.vm] = replace(
                truth, phase="failed", attempt=Attempt(spec_digest=digest, count=1)
            )
        return done

    def change(self, vm: str, **fields: Any) -> None:
        for vms in self.hosts.values():
            if vm in vms:
                vms[vm] = replace(vms[vm], **fields)

    def pass_time(self, seconds: float) -> None:
        for name, truth in self.all().items():
            self.change(name, up_s=truth.up_s + seconds)

    def all(self) -> dict[str, Truth]:
        return {name: truth for vms in self.hosts.values() for name, truth in vms.items()}


@dataclass
class Rolling:
    """A fleet with a rollout, and what the batches of it are by the book."""

    chance: Random

    def __post_init__(self) -> None:
        chance = self.chance
        self.size = chance.choice([1, 4, 12, 30])
        self.serial = chance.choice(SERIALS)
        self.max_fail = chance.choice([0, 0, 20, 50])
        self.canary = 0
        self.names = [f"web-{index:03d}" for index in range(self.size)]
        self.site = Site(hosts={host: {} for host in HOSTS})
        self.checkout = Checkout(self.site)
        self.specify("good")
        self.checkout.tick()
        self.pass_time(3600)

    def specify(self, boot_args: str) -> None:
        rollout = {"serial": self.serial, "max_fail_percentage": self.max_fail, "min_healthy_time": "10s"}
        rollout |= {"canary": self.canary} if self.canary else {}
        template = {"image": "hello", "boot_args": boot_args}
        web = document("Fleet", "web", replicas=self.size, template=template, rollout=rollout)
        self.checkout.documents = (SHOP, inventory(), web)

    def pass_time(self, seconds: float) -> None:
        self.site.pass_time(seconds)

    def batches(self) -> list[list[str]]:
        share = max(1, self.size // 10)
        first = min(self.canary, share)
        cut: list[list[str]] = [self.names[:first]] if first else []
        left = self.names[first:]
        offset = len(cut)
        while left:
            size = self.serial[min(len(cut) - offset, len(self.serial) - 1)]
            size = size if isinstance(size, int) else max(1, self.size * int(size[:-1]) // 100)
            cut.append(left[: min(size, share)])
            left = left[min(size, share) :]
        return cut

    def halted(self) -> bool:
        """By what hosts tell that answer."""
        seen = [vms for host, vms in self.site.hosts.items() if host not in self.site.dark]
        failed = {name for vms in seen for name, truth in vms.items() if truth.attempt}
        return any(100 * len(failed.intersection(batch)) > self.max_fail * len(batch) for batch in self.batches())

    def tick(self, limits: RunOverrides = RunOverrides()) -> Plan:  # noqa: B008 - frozen
        """One run that may be killed at any moment; every action that it would take is judged before."""
        halted = self.halted() and not limits.retry
        plan = self.checkout.look(limits)
        self.judge(plan, halted=halted)
        actions = self.chance.sample(plan.actions, len(plan.actions))
        for action in actions[: self.chance.choice([len(actions), len(actions), self.chance.randint(0, len(actions))])]:
            assert self.site.act(action) == "done"
            if self.site.hosts[action.host][action.vm].phase == "running":
                self.site.change(action.vm, up_s=0.0)
        if self.chance.random() < 0.2:
            self.checkout.memory = Placements()
        return plan

    def judge(self, plan: Plan, *, halted: bool) -> None:
        there = self.site.all()
        down = {name for name, truth in there.items() if truth.phase != "running"}
        taken = [action.vm for action in plan.actions if action.verb == "restart" and action.vm not in down]
        batches = self.batches()
        assert not taken or len(taken) + len(down) <= max(map(len, batches)), "too many are down at a time"
        bad = [action.vm for action in plan.actions if action.desired and action.desired.spec.boot_args == BAD]
        proven = {name for name, truth in there.items() if truth.spec.boot_args == BAD and not truth.attempt}
        assert not (halted and set(bad) - proven), "a halted rollout went on"
        rolled = [name for name in taken if name in bad]
        assert not (rolled and any(self.site.hosts[host] for host in self.site.dark)), "it went on without a host"
        for name in rolled:
            number = next(number for number, batch in enumerate(batches) if name in batch)
            assert len(rolled) + len(down) <= len(batches[number])
            for before in (there[other] for batch in batches[:number] for other in batch):
                new = before.spec.boot_args == BAD and before.phase == "running" and before.up_s >= MIN_HEALTHY_S
                assert new or before.attempt, "a batch began before those before it were healthy"


@pytest.mark.parametrize("seed", seeds(40))
def test_whatever_happens_no_more_are_down_than_may_be_and_batches_keep_their_order(seed: int) -> None:
    chance = Random(seed)
    rolling = Rolling(chance)
    site = rolling.site
    site.failing = {name for name in rolling.names if chance.random() < 0.1}
    site.refused = {name for name in rolling.names if chance.random() < 0.05} - site.failing
    rolling.specify(BAD)
    for _ in range(40):
        site.dark = set(chance.sample(HOSTS, chance.choice([0, 0, 0, 1])))
        for name in rolling.names:
            if chance.random() < 0.02 and site.all()[name].phase == "running":
                site.change(name, phase="killed")
        rolling.tick()
        rolling.pass_time(chance.choice([0.5, 4.0, 11.0]))


@pytest.mark.parametrize("seed", seeds(20))
def test_what_is_halted_stays_halted_until_somebody_says_otherwise(seed: int) -> None:
    chance = Random(seed)
    rolling = Rolling(chance)
    site = rolling.site
    site.failing = set(rolling.names)
    rolling.specify(BAD)
    for _ in range(15):
        rolling.tick()
        rolling.pass_time(11)
    for name in rolling.names:
        if chance.random() < 0.3 and site.all()[name].phase == "running":
            site.change(name, phase="killed")
    assert rolling.halted()
    failed = {name for name, truth in site.all().items() if truth.attempt}
    assert len(failed) <= max(map(len, rolling.batches())), "more than one batch was tried"
    for _ in range(5):
        rolling.tick()
        rolling.pass_time(11)
    there = site.all()
    assert {name for name, truth in there.items() if truth.attempt} == failed
    assert {there[name].phase for name in rolling.names if name not in failed} <= {"running"}
    site.failing = set()
    rolling.tick(RunOverrides(retry=True))  # some of the orders may get lost
    for _ in range(3):
        rolling.pass_time(11)
        rolling.tick(RunOverrides(retry=True))
    assert {truth.attempt for truth in site.all().values()} == {None}


@pytest.mark.parametrize("seed", seeds(10))
def test_nobody_follows_a_canary_that_was_not_promoted(seed: int) -> None:
    chance = Random(seed)
    rolling = Rolling(chance)
    rolling.canary, site = chance.choice([1, 2]), rolling.site
    rolling.specify(BAD)
    canaries = rolling.batches()[0]

    def brought() -> set[str]:
        return {name for name, truth in site.all().items() if truth.spec.boot_args == BAD}

    for _ in range(12):
        if chance.random() < 0.3:
            site.change(chance.choice(rolling.names), phase="killed")
        site.token += 1
        rolling.tick()
        rolling.pass_time(chance.choice([0.5, 11.0]))
        assert brought() <= set(canaries)
    if rolling.size > len(canaries):
        for _ in range(3):  # some of the orders may get lost, and VMs that died come back
            rolling.pass_time(11)
            rolling.tick()
        assert brought() == set(canaries)
        for _ in range(90):
            site.token += 1
            rolling.tick(RunOverrides(promote=("web",)))
            rolling.pass_time(11)
            if brought() == set(rolling.names):
                break
    assert brought() == set(rolling.names)


@pytest.mark.parametrize("seed", seeds(20))
def test_without_failures_it_ends_with_all_that_is_wanted(seed: int) -> None:
    rolling = Rolling(Random(seed))
    rolling.specify(BAD)
    for _ in range(200):
        plan = rolling.tick()
        rolling.pass_time(4)
        if not plan.changes:
            break
    assert {(truth.spec.boot_args, truth.phase) for truth in rolling.site.all().values()} == {(BAD, "running")}

"""What takes data away waits for the signatures of enough people, whoever carries it out; all else does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile import wiring
from mikrom_reconcile.control.policy import Policy
from mikrom_reconcile.control.reconcile import Reconciler
from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import BEAT, Approval, Plan, RunReport
from mikrom_reconcile.core.planning.guards import losses_of
from mikrom_reconcile.output.run_result import result_of
from mikrom_reconcile.system.time_limits import Clock
from tests.people import People
from tests.properties.world import World
from tests.unit.control.test_doubles_in_memory import REQUEST, SPECS, WorldHosts

FEWER = SPECS.replace("replicas: 4", "replicas: 2") + "---\n" + SPECS.split("---\n")[1].replace("web", "db")
TREE = SourceTree(revision="fewer", files=(SourceFile(path="web.yml", text=FEWER),))


@dataclass
class Shop:
    """Four VMs, of which two are to go while four of another fleet come; two people have to approve."""

    people: People
    world: World
    engine: Reconciler

    def saved(self) -> tuple[Plan, list[str]]:
        plan = self.engine.plan(replace(REQUEST, tree=TREE))
        return plan, list(losses_of(plan).values())

    def apply(self, plan: Plan | None, *approvals: Approval, origin: str = "apply by ana") -> RunReport:
        request = replace(REQUEST, tree=TREE, approvals=approvals, origin=origin)
        return self.engine.apply(request, plan, progress=lambda _: None)

    def vms(self) -> tuple[int, int]:
        names = [name for vms in self.world.hosts.values() for name in vms]
        return sum(name.startswith("web") for name in names), sum(name.startswith("db") for name in names)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    people, world = People(tmp_path), World(hosts={"hv1": {}, "hv2": {}})
    engine = Reconciler(
        here="hv1",
        hosts=WorldHosts(world),
        store=FileStore(tmp_path / "store", tmp_path),
        clock=Clock(),
        schemas=wiring.schemas(),
        policy=Policy(approvers=people.approvers(2)),
    )
    engine.apply(REQUEST, None, progress=lambda _: None)
    return Shop(people, world, engine)


Given = Callable[[People, list[str]], list[Approval]]
DAY = timedelta(hours=24, minutes=1)
TOO_FEW: dict[str, tuple[Given, str]] = {
    "none": (lambda _, __: [], "given: 0; who can give them: ana, bo, cy"),
    "one": (lambda people, plan: [people.approval("ana", plan)], "given: 1 by ana; who can give them: bo, cy"),
    "the same twice": (lambda people, plan: [people.approval("ana", plan)] * 2, "given: 1 by ana;"),
    "one person with two keys": (
        lambda people, plan: [people.approval("ana", plan), people.approval("ana-2", plan)],
        "given: 1 by ana;",
    ),
    "of another plan": (
        lambda people, plan: [people.approval("ana", plan), people.approval("bo", plan[:1])],
        "approval 2: bo signed another plan, or may not approve (Signature verification failed",
    ),
    "of a stranger": (
        lambda people, plan: [people.approval("mallory", plan), people.approval("bo", plan)],
        "given: 1 by bo; who can give them: ana, cy; approval 1: nobody signed it who may approve (No principal",
    ),
    "of one who may only sign commits": (
        lambda people, plan: [people.approval("dan", plan), people.approval("bo", plan)],
        "approval 1: dan signed another plan, or may not approve (",
    ),
    "expired": (
        lambda people, plan: [people.approval("ana", plan, age=DAY), people.approval("bo", plan)],
        "UTC, and holds for 24 h",
    ),
    "dated ahead": (
        lambda people, plan: [people.approval("ana", plan, age=-DAY), people.approval("bo", plan)],
        "UTC, and holds for 24 h",
    ),
    "no signature": (
        lambda people, plan: [replace(people.approval("ana", plan), signature="-----BEGIN")],
        "approval 1: nobody signed it who may approve (",
    ),
}


@pytest.mark.parametrize(("given", "why"), TOO_FEW.values(), ids=TOO_FEW)
def test_with_too_few_approvals_no_data_is_lost_and_all_else_is_done(shop: Shop, given: Given, why: str) -> None:
    plan, losses = shop.saved()
    assert "2 VMs would lose data, which is refused so far: approvals needed to take data away: 2" in plan.warnings[0]
    report = shop.apply(plan, *given(shop.people, losses))
    assert shop.vms() == (4, 4)
    assert result_of(report).exit_code == 8
    assert {refusal.rule for refusal in report.plan.refusals} == {"approval"}
    assert why in report.plan.refusals[0].message


@pytest.mark.parametrize("origin", [BEAT, "apply by ana"])
def test_a_run_without_a_saved_plan_has_no_approvals(shop: Shop, origin: str) -> None:
    report = shop.apply(None, origin=origin)
    assert (shop.vms(), result_of(report).exit_code) == ((4, 4), 8)


def test_enough_approvals_let_exactly_the_plan_pass_and_stand_in_the_history(shop: Shop) -> None:
    plan, losses = shop.saved()
    approvals = [shop.people.approval(name, losses) for name in ("ana", "bo")]
    assert not shop.engine.plan(replace(REQUEST, tree=TREE, approvals=tuple(approvals))).warnings
    report = shop.apply(plan, *approvals)
    assert (shop.vms(), result_of(report).exit_code) == ((2, 4), 0)
    assert report.origin == "apply by ana, approved by ana, bo"
    gone = replace(TREE, files=(SourceFile(path="web.yml", text=FEWER.replace("replicas: 2", "replicas: 1")),))
    more = shop.engine.plan(replace(REQUEST, tree=gone))
    request = replace(REQUEST, tree=gone, approvals=tuple(approvals))
    assert result_of(shop.engine.apply(request, more, progress=lambda _: None)).exit_code == 8, "they are of that plan"
    assert shop.vms() == (2, 4)


def test_without_the_file_of_approvers_nobody_can_approve(shop: Shop) -> None:
    plan, losses = shop.saved()
    approvals = [shop.people.approval(name, losses) for name in ("ana", "bo")]
    shop.people.file.unlink()
    report = shop.apply(plan, *approvals)
    assert (shop.vms(), result_of(report).exit_code) == ((4, 4), 8)
    assert f"who can give them: nobody else is in {shop.people.file}" in report.plan.refusals[0].message

"""A policy command judges plans where they are carried out; whatever is no clear yes is a no."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile import wiring
from mikrom_reconcile.control.policy import Policy
from mikrom_reconcile.control.reconcile import Reconciler
from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.core.model.plan import BEAT, Plan, RunReport
from mikrom_reconcile.output.run_result import plan_exit_code, record_of, result_of
from mikrom_reconcile.system.time_limits import Clock
from tests.properties.world import World
from tests.unit.control.test_doubles_in_memory import REQUEST, WorldHosts


@dataclass
class Judge:
    """A policy command, and an engine that has it."""

    folder: Path
    world: World = field(default_factory=lambda: World(hosts={"hv1": {}, "hv2": {}}))

    @property
    def command(self) -> str:
        return str(self.folder / "policy")

    def says(self, script: str) -> None:
        (self.folder / "policy").write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / "policy").chmod(0o755)

    @property
    def engine(self) -> Reconciler:
        store = FileStore(self.folder / "store", self.folder)
        hosts = WorldHosts(self.world)
        schemas = wiring.schemas()
        policy = Policy(command=self.command)
        return Reconciler(here="hv1", hosts=hosts, store=store, clock=Clock(), schemas=schemas, policy=policy)

    def apply(self, plan: Plan | None = None, origin: str = "a test") -> RunReport:
        return self.engine.apply(replace(REQUEST, origin=origin), plan, progress=lambda _: None)

    @property
    def vms(self) -> int:
        return sum(len(vms) for vms in self.world.hosts.values())


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return Judge(tmp_path)


def test_it_is_given_the_plan_as_programs_get_it_and_none_of_our_settings(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIKROM_BROKER_URL", "redis://:sesame@x")
    judge.says(f"cat > {judge.folder}/given; env > {judge.folder}/environment")
    assert result_of(judge.apply()).converged
    given = json.loads((judge.folder / "given").read_text())
    assert given["summary"]["create"] == len(given["changes"]) == judge.vms == 4
    assert "sesame" not in (judge.folder / "environment").read_text()
    (judge.folder / "given").unlink()
    judge.apply()
    assert not (judge.folder / "given").exists(), "a plan without changes is not judged"


@pytest.mark.parametrize("origin", ["a test", BEAT])
@pytest.mark.parametrize("saved", [False, True])
def test_what_it_refuses_is_not_begun_by_anybody(judge: Judge, origin: str, saved: bool) -> None:  # noqa: FBT001
    judge.says("exit 0")
    allowed = judge.engine.plan(REQUEST)
    judge.says("echo noise; echo 'web: four VMs'  >&2; echo >&2; echo 'are too many' >&2; exit 3")
    planned = judge.engine.plan(REQUEST)
    assert (planned.actions, plan_exit_code(planned, detailed=False)) == ((), 8)
    report = judge.apply(allowed if saved else None, origin)
    assert (result_of(report).exit_code, judge.vms, report.outcomes) == (8, 0, ())
    (refusal,) = (report.remaining or report.plan).refusals
    assert refusal.rule == "policy"
    assert refusal.message == f"web: four VMs; are too many (MIKROM_POLICY={judge.command})"
    assert any("web: four VMs" in line for line in record_of(report).refused)
    assert not judge.engine.store.placements("default").vms, "nothing was placed"
    judge.says("exit 0")
    assert (result_of(judge.apply()).exit_code, judge.vms) == (0, 4)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "it could not be started: No such file or directory"),
        ("exit 1", "exit code 1"),
        ("kill -9 $$", "it was killed by signal 9"),
        ("echo late >&2; sleep 60", "it gave no answer within 0.5 s"),
        ("exec 2>&-; sleep 60", "it gave no answer within 0.5 s"),
        ("yes >&2", "it gave no answer within 0.5 s"),
        ("sleep 60 & echo no >&2; exit 2", "no"),
        (r"printf '\033[2Jno\377\n' >&2; exit 2", "\x1b[2Jno\ufffd"),
        ("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 2", "x" * 1000),
    ],
)
def test_a_command_that_gave_no_clear_judgment_refuses_and_leaves_no_process(
    judge: Judge, script: str | None, why: str
) -> None:
    judge.says("exit 0")
    plan = judge.engine.plan(REQUEST)
    if script is None:
        (judge.folder / "policy").unlink()
    else:
        judge.says(script)
    began = time.monotonic()
    found = Policy(command=judge.command, limit_s=0.5 if "0.5 s" in why else 30).judged(plan)
    assert found.refusals[-1].message == f"{why} (MIKROM_POLICY={judge.command})"
    assert time.monotonic() - began < 30  # a sleep would take 60
    assert found.id != plan.id


def test_a_judgment_waits_for_nothing_that_the_command_left_behind(judge: Judge) -> None:
    judge.says("exit 0")
    plan = judge.engine.plan(REQUEST)
    judge.says("sleep 60 & exit 0")
    began = time.monotonic()
    assert Policy(command=judge.command).judged(plan) is plan
    assert time.monotonic() - began < 30

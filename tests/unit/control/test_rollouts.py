"""A run and the batches of a rollout: an apply waits for them, Beat comes again, and progress hears everything."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.control import revisions
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.desired import Freeze
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.plan import BEAT, ActionOutcome, RunReport, RunRequest
from mikrom_reconcile.output.run_result import result_of
from tests.fakes import HeldClock

CLOSED = """
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: 3
  template: {{image: hello, boot_args: "{boot_args}"}}
  disruption: {{budgets: [{{max: 0, schedule: "50 11 * * *", duration: 15m}}, {{max: 3}}]}}
"""
FLEET = """
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: 3
  template: {{image: hello, boot_args: "{boot_args}"}}
  rollout: {{min_healthy_time: {time}}}
"""
Apply = Callable[..., RunReport]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("MIKROM_DRIVER", "simulated")
    return wiring.open_engine(settings.load())


def request(boot_args: str, *, min_healthy_time: str = "200ms", origin: str = "a test", **asked: float) -> RunRequest:
    text = FLEET.format(boot_args=boot_args, time=min_healthy_time)
    tree = SourceTree(revision="r", files=(SourceFile(path="web.yml", text=text),))
    return RunRequest(run_id="r", origin=origin, tree=tree, **asked)  # type: ignore[arg-type]


def applied(engine: Engine, asked: RunRequest, heard: list[ActionOutcome] | None = None) -> RunReport:
    return engine.apply(asked, None, progress=([] if heard is None else heard).append)


def test_an_apply_waits_until_each_batch_was_healthy_for_long_enough(engine: Engine) -> None:
    applied(engine, request("a"))
    began_s = time.monotonic()
    report = applied(engine, request("b"))
    assert time.monotonic() - began_s >= 0.4
    assert [outcome.vm for outcome in report.outcomes] == ["web-000", "web-001", "web-002"]
    assert (report.remaining is not None and report.remaining.changes, report.late) == ((), False)


def test_a_scheduled_run_leaves_the_next_batch_to_the_next_tick(engine: Engine) -> None:
    applied(engine, request("a"))
    ticks = [applied(engine, request("b", origin=BEAT, min_healthy_time=time)) for time in ("1h", "1h", "1ms")]
    first, second, third = ([outcome.vm for outcome in report.outcomes] for report in ticks)
    assert (first, second) == (["web-000"], []), "it was not healthy for long enough"
    assert third[0] == "web-001"


def test_a_run_whose_time_is_over_before_a_batch_is_healthy_is_late(engine: Engine) -> None:
    applied(engine, request("a"))
    began_s = time.monotonic()
    report = applied(engine, request("b", min_healthy_time="1h", timeout_s=3.0))
    assert time.monotonic() - began_s < 60
    assert [outcome.vm for outcome in report.outcomes] == ["web-000"]
    assert report.late


CANARY = """
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: 3
  template: {{image: hello, boot_args: "{boot_args}"}}
  rollout: {{canary: 1}}
"""


def of_canary(boot_args: str, **asked: Any) -> RunRequest:
    tree = SourceTree(revision="r", files=(SourceFile(path="web.yml", text=CANARY.format(boot_args=boot_args)),))
    return RunRequest(run_id="r", origin="a test", tree=tree, **asked)


def test_others_follow_a_canary_once_it_is_promoted(engine: Engine) -> None:
    applied(engine, of_canary("a"))
    for expected in (["web-000"], []):
        report = applied(engine, of_canary("b"))
        assert [outcome.vm for outcome in report.outcomes] == expected
    report = applied(engine, of_canary("b", promote=("web",)))
    assert [(outcome.verb, outcome.vm, outcome.result) for outcome in report.outcomes] == [
        ("update", "web-000", "done"),
        ("restart", "web-001", "done"),
        ("restart", "web-002", "done"),
    ]
    with pytest.raises(UsageError, match="no healthy canary"):
        engine.plan(of_canary("b", promote=("web",)))
    assert [outcome.vm for outcome in applied(engine, of_canary("c")).outcomes] == ["web-000"], (
        "another spec waits anew"
    )


def test_an_aborted_rollout_stays_where_it_is_until_the_spec_changes(engine: Engine) -> None:
    applied(engine, of_canary("a"))
    applied(engine, of_canary("b"))
    report = applied(engine, of_canary("b", abort=("web",)))
    assert [(outcome.verb, outcome.vm) for outcome in report.outcomes] == [("update", "web-000")]
    assert report.remaining is not None
    assert {change.kind for change in report.remaining.changes} == {"blocked"}
    left = applied(engine, of_canary("b")).remaining
    assert left is not None
    assert [refusal.message for refusal in left.refusals] == ["a person has aborted it; change the spec, or --retry"]
    assert [outcome.vm for outcome in applied(engine, of_canary("a")).outcomes] == ["web-000"], "and back again"
    assert not engine.plan(of_canary("a")).changes


class HastyClock(HeldClock):
    """It is noon, and to wait takes no time."""

    def sleep(self, seconds: float) -> None:
        self.moved_s += seconds


@pytest.mark.parametrize(("timeout_s", "waited_s", "left"), [(600.0, 300.0, 0), (299.0, 0.0, 3)])
def test_an_apply_waits_for_a_budget_that_opens_in_its_time_and_for_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, timeout_s: float, waited_s: float, left: int
) -> None:
    clock = HastyClock()
    monkeypatch.setattr(engine, "clock", clock)
    texts = (CLOSED.format(boot_args=boot_args) for boot_args in "ab")
    trees = [SourceTree(revision="r", files=(SourceFile(path="web.yml", text=text),)) for text in texts]
    first, second = (RunRequest(run_id="r", origin="a test", tree=tree, timeout_s=timeout_s) for tree in trees)
    assert result_of(applied(engine, first)).exit_code == 0
    report = applied(engine, second)
    assert (clock.moved_s, len(result_of(report).waiting), report.late) == (waited_s, left, False)
    assert result_of(report).exit_code == (8 if left else 0)
    assert [each.number for each in revisions.kept(engine.store)] == [2, 1]


def test_a_frozen_project_has_everybody_wait_and_its_scheduled_runs_too(engine: Engine) -> None:
    applied(engine, request("a"))
    revisions.keep_freeze(engine.store, "default", Freeze(by="ana@build7", reason="Christmas"))
    for origin, code in ((BEAT, 0), ("a test", 8)):
        report = applied(engine, request("b", origin=origin))
        assert (report.outcomes, result_of(report).exit_code) == ((), code)
        assert report.plan.warnings == ("project default is frozen by ana@build7: Christmas",)
    engine.store.put("freezes", "default", b"of another release")
    assert not engine.plan(request("b")).warnings
    assert [each.number for each in revisions.kept(engine.store)] == [1], "what only waited was not applied"


def test_progress_hears_what_has_become_stale(engine: Engine) -> None:
    applied(engine, request("a"))
    plan = engine.plan(request("b"))
    applied(engine, request("c"))
    heard: list[ActionOutcome] = []
    report = engine.apply(request("b"), plan, progress=heard.append)
    assert [(outcome.vm, outcome.result) for outcome in heard] == [("web-000", "stale")]
    assert tuple(heard) == report.outcomes

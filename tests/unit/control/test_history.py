"""What scheduled runs leave in the history: silence once, deeds for good, and the latest word on what is now."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count

import pytest

from mikrom_reconcile import settings, wiring
from mikrom_reconcile.control import revisions
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.desired import Freeze
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import BEAT, RunRecord, RunRequest

SPECS = """
apiVersion: mikrom/v1
kind: Project
metadata: {{name: shop}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {replicas}
  template: {{image: hello, boot_args: "{boot_args}"}}
  rollout: {{min_healthy_time: {time}}}
"""
Tick = Callable[..., RunRecord]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("MIKROM_DRIVER", "simulated")
    return wiring.open_engine(settings.load())


@pytest.fixture
def run(engine: Engine) -> Tick:
    numbers = count(1)

    def tick(replicas: int, boot_args: str = "a", *, time: str = "1ms", origin: str = BEAT) -> RunRecord:
        text = SPECS.format(replicas=replicas, boot_args=boot_args, time=time)
        files = (SourceFile(path="web.yml", text=text),)
        tree = SourceTree(revision=f"r{replicas}{boot_args}", files=files, author="Ana")
        request = RunRequest(run_id=f"run-{next(numbers)}", origin=origin, tree=tree)
        engine.apply(request, None, progress=lambda _: None)
        return engine.store.runs(1)[0]

    return tick


def test_a_standing_refusal_is_kept_once_and_pushes_no_deed_out(engine: Engine, run: Tick) -> None:
    run(6, origin="apply by ana@build7")
    for tick in range(1, 8):
        refused = run(1)
        assert (refused.times, refused.exit_code, len(refused.refused)) == (tick, 8, 1)
    kept = engine.store.runs(100)
    assert [(record.run_id, record.times) for record in kept] == [("run-8", 7), ("run-1", 1)]
    assert kept[0].since is not None
    assert kept[0].since < kept[0].started_at
    assert len(kept[1].outcomes) == 6


def test_once_a_problem_is_gone_the_latest_run_says_so(engine: Engine, run: Tick) -> None:
    run(6)
    assert run(1).exit_code == 8
    fine = run(6)
    assert (fine.exit_code, fine.conclusion.partition(" in ")[0], fine.refused) == (0, "Converged", ())
    assert run(6).times == 2


def test_each_tick_of_a_slow_rollout_is_in_progress_and_none_has_failed(run: Tick) -> None:
    run(3)
    first = run(3, "b", time="1h")
    assert (first.exit_code, [deed.vm for deed in first.outcomes]) == (0, ["web-000"])
    assert "In progress" in first.conclusion
    assert "2 VMs waiting" in first.conclusion
    second, third = run(3, "b", time="1h"), run(3, "b", time="1h")
    assert (second.exit_code, second.outcomes, second.failed, second.refused) == (0, (), (), ())
    assert (third.run_id, third.times) == ("run-4", 2)


def test_runs_that_waited_are_not_counted_among_those_that_found_all_well(engine: Engine, run: Tick) -> None:
    run(3)
    revisions.keep_freeze(engine.store, "shop", Freeze(by="ana"))
    assert (run(4).times, run(4).times) == (1, 2)
    revisions.keep_freeze(engine.store, "shop", Freeze(by="ana", until=datetime.now(UTC)))
    assert len(run(4).outcomes) == 1
    assert (run(4).times, run(4).times) == (1, 2)


def test_a_deed_has_its_own_reason_and_fields_also_when_it_waited_in_the_plan(engine: Engine, run: Tick) -> None:
    run(3, origin="apply by ana@build7")
    run(3, "b", origin="apply by bob@build7")
    record = engine.store.runs(1)[0]
    assert (record.author, record.revision, record.origin) == ("Ana", "r3b", "apply by bob@build7")
    assert len(record.outcomes) == 3
    for deed in record.outcomes:
        assert deed.reasons == ("spec changed",)
        assert [(field.path, field.before, field.after) for field in deed.fields] == [("boot_args", "a", "b")]

"""`apply --no-wait`: the run goes on without whoever asked for it, and `get runs` tells how."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mikrom_reconcile.core.model.plan import UnfinishedRun
from mikrom_reconcile.dispatch.transport.rpc import WorkerId
from mikrom_reconcile.dispatch.transport.shared_state import shown, unfinished_runs
from tests.command import document
from tests.fleet import KEYS, ROOT, Fleet, wait_until

pytestmark = pytest.mark.redis

WEB = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: %d, template: {image: hello}}\n"


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    (fleet.folder / "web.yml").write_text(WEB % 4)
    try:
        yield fleet
    finally:
        fleet.close()


def mikrom(fleet: Fleet, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mikrom_reconcile", *words]
    done = subprocess.run(argv, env=fleet.environment(), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def handed_over(fleet: Fleet, *options: str) -> str:
    told = mikrom(fleet, "apply", str(fleet.folder / "web.yml"), "--yes", "--no-wait", "-o", "json", *options)
    run: str = json.loads(told.stdout)["run_id"]
    return run


def runs(fleet: Fleet) -> dict[str, Any]:
    return document("runs", mikrom(fleet, "get", "runs", "-o", "json"))


def test_it_leaves_at_once_and_the_run_is_seen_to_go_on_and_to_end(fleet: Fleet) -> None:
    fleet.worker("host", MIKROM_TEST_BOOT_S="2")
    fleet.worker("control", pool="threads")
    run = handed_over(fleet, "--forks", "1")
    going = unfinished_runs(fleet.redis, KEYS)[0]
    assert (going.run_id, going.planned, going.failed) == (run, 4, 0)
    wait_until(lambda: unfinished_runs(fleet.redis, KEYS)[0].state == "running", "the run to begin")
    followed = mikrom(fleet, "get", "runs", run, "-f")
    assert "Goes on: 3 of 4 done." in followed.stderr
    assert "Converged in" in followed.stdout
    told = runs(fleet)
    assert (told["unfinished"], told["runs"][0]["run_id"], told["runs"][0]["done"]) == ([], run, 4)
    assert run in mikrom(fleet, "get", "runs", run).stdout


def test_a_run_whose_control_worker_dies_is_shown_as_failed(fleet: Fleet) -> None:
    fleet.worker("host", MIKROM_TEST_BOOT_S="30")
    control = fleet.worker("control", pool="threads")
    run = handed_over(fleet)
    wait_until(lambda: "web-003" in str(list((fleet.folder / "state").glob("vms/*"))), "the run to begin")
    control.send_signal(signal.SIGKILL)
    fleet.redis.delete(*fleet.redis.scan_iter(match="mikrom:alive:control:*"))  # rather than wait for its TTL of 15 s
    [dead] = runs(fleet)["unfinished"]
    assert (dead["run_id"], dead["state"]) == (run, "failed")
    followed = mikrom(fleet, "get", "runs", run, "-f", code=1)
    assert f"run {run}: Ended without a report: its control worker died" in followed.stderr


def test_a_run_that_cannot_begin_says_why(fleet: Fleet) -> None:
    fleet.worker("host", MIKROM_TEST_BOOT_S="0")
    fleet.worker("control", pool="threads")
    fleet.redis.set("mikrom:lease:default", "1 somebody else")
    run = handed_over(fleet, "--timeout", "0.6")
    wait_until(lambda: unfinished_runs(fleet.redis, KEYS)[0].state == "failed", "the end of the run")
    [failed] = runs(fleet)["unfinished"]
    assert failed["run_id"] == run
    assert "is being changed by somebody else" in failed["error"]
    assert failed["origin"].startswith("apply by ")


@pytest.mark.parametrize("awaited", [True, False])
def test_a_run_that_fails_is_shown_until_it_is_told_why_where_nobody_waits_for_it(
    fleet: Fleet, *, awaited: bool
) -> None:
    worker = WorkerId(owner="control:a", start_id="1")
    run = UnfinishedRun(run_id="r", origin="test", since=datetime.now(UTC), state="waiting")
    with suppress(LookupError), shown(fleet.redis, KEYS, worker, run, print, awaited=awaited):
        raise LookupError
    assert [each.run_id for each in unfinished_runs(fleet.redis, KEYS)] == [run.run_id] * (not awaited)


def test_a_run_that_another_release_noted_is_told_of_and_hides_no_other(fleet: Fleet) -> None:
    fleet.redis.set(KEYS.unfinished("odd"), b'{"a shape": "of tomorrow"}')
    [odd] = runs(fleet)["unfinished"]
    assert (odd["run_id"], odd["state"]) == ("odd", "failed")
    assert "another release wrote it" in odd["error"]


def test_without_a_broker_there_is_nobody_to_leave_it_to(fleet: Fleet) -> None:
    environment = fleet.environment() | {"MIKROM_BROKER_URL": ""}
    argv = [sys.executable, "-m", "mikrom_reconcile", "apply", str(fleet.folder / "web.yml"), "--yes", "--no-wait"]
    refused = subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert refused.returncode == 64
    assert "--no-wait needs a control worker" in refused.stderr
    assert not (fleet.folder / "state" / "vms").exists()


def test_a_run_that_nobody_has_heard_of_is_a_usage_error(fleet: Fleet) -> None:
    assert "no run is called 'nobody'" in mikrom(fleet, "get", "runs", "nobody", "-f", code=64).stderr

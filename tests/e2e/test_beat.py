"""Beat: how often it ticks, and what becomes of a tick."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from celery.result import AsyncResult

from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.transport.broker import LAST
from mikrom_reconcile.dispatch.transport.shared_state import living
from tests.fleet import KEYS, Fleet, assert_once_per_interval, wait_until
from tests.unit.dispatch.test_webhooks import Server

pytestmark = pytest.mark.redis

HERE = "localhost"
WEB = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec: {replicas: 2, template: {image: hello, machine: {mem_size_mib: 4}}}
"""


@pytest.fixture
def beat(fleet: Fleet) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a Beat that is then seen to live."""

    def start(number: int, interval: str, *before: str) -> subprocess.Popen[bytes]:
        argv = [*before, sys.executable, "run_beat.py"]
        before = living(fleet.redis, KEYS, "beat")
        process = fleet.run(f"beat-{number}", argv, MIKROM_RECONCILE_INTERVAL=interval, MIKROM_SPECS="/specs")
        wait_until(lambda: len(living(fleet.redis, KEYS, "beat")) > len(before), "the Beat")
        return process

    return start


def ticks(fleet: Fleet) -> int:
    """Ticks that wait for a control worker, those of the cleanup left out."""
    waiting = fleet.redis.lrange(f"{KEYS.queue}\x06\x16{LAST}", 0, -1)
    return sum(b'"mikrom.reconcile"' in message for message in waiting)


def send(app: FleetApp, tick: str) -> AsyncResult:
    return app.send_task("mikrom.reconcile", kwargs={"tick": tick}, queue=KEYS.queue)


def done(sent: AsyncResult) -> str:
    return str(sent.get(timeout=240)["done"])


def test_two_of_them_tick_once_per_interval_and_one_goes_on_alone(
    fleet: Fleet, beat: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first, _ = beat(1, "1"), beat(2, "1")
    assert_once_per_interval(lambda: ticks(fleet), interval_s=1)
    first.kill()
    before = ticks(fleet)
    wait_until(lambda: ticks(fleet) > before, "the tick of the one that is left")


def test_two_of_them_tick_once_when_their_cron_line_says_so(
    fleet: Fleet, beat: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Their clocks are set to shortly before a full minute, and differ by half a second."""
    beat(1, "*/2 * * * *", "faketime", "-f", "@2026-11-22 11:59:54.5")
    beat(2, "*/2 * * * *", "faketime", "-f", "@2026-11-22 11:59:54.0")
    wait_until(lambda: ticks(fleet), "the tick of 12:00")
    time.sleep(2)
    assert ticks(fleet) == 1
    left_ms = fleet.redis.pttl(KEYS.tick("reconcile"))
    assert 100_000 < left_ms <= 120_000, "the key holds until 12:02"


@pytest.mark.parametrize("interval", ["0", "soon", "61 * * * *", "0 0 30 2 *"])
def test_an_interval_that_means_nothing_is_refused_by_name(fleet: Fleet, interval: str) -> None:
    environment = fleet.environment(MIKROM_RECONCILE_INTERVAL=interval, MIKROM_SPECS="/specs")
    refused = subprocess.run(
        [sys.executable, "run_beat.py"], env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert refused.returncode != 0
    assert f"MIKROM_RECONCILE_INTERVAL='{interval}'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_tick_that_is_late_does_nothing_and_one_in_time_repairs(fleet: Fleet, app: FleetApp) -> None:
    specs = fleet.folder / "web.yml"
    specs.write_text(WEB)
    fleet.worker("host", MIKROM_TEST_BOOT_S="0")
    fleet.worker("control", pool="threads", MIKROM_SPECS=str(specs))
    fleet.redis.set(KEYS.tick("reconcile"), "now", px=60_000)
    assert done(send(app, "an hour ago")) == "nothing: this tick is late, a newer one is due"
    assert done(send(app, "now")) == "2 create done"
    assert done(send(app, "now")) == "nothing to do"


def test_a_tick_while_a_run_goes_on_is_skipped_and_says_so(fleet: Fleet, app: FleetApp) -> None:
    specs = fleet.folder / "web.yml"
    specs.write_text(WEB)
    fleet.worker("host", MIKROM_TEST_BOOT_S="1")
    fleet.worker("control", pool="threads", MIKROM_SPECS=str(specs))
    fleet.redis.set(KEYS.tick("reconcile"), "now", px=60_000)
    long = send(app, "now")
    wait_until((fleet.folder / "state" / "vms" / "web-000").exists, "the run to begin")
    assert done(send(app, "now")) == "nothing: the run of an earlier tick still goes on"
    assert done(long) == "2 create done"
    assert "beat: nothing: the run of an earlier tick still goes on" in fleet.log("control:localhost")


def test_cleanup_removes_what_waits_for_hosts_that_are_gone_and_nothing_else(fleet: Fleet, app: FleetApp) -> None:
    fleet.worker("control", pool="threads")
    fleet.redis.set(KEYS.known("hv01"), b"")
    for host in ("hv01", "hv02.example"):
        app.send_task("mikrom.observe_host", queue=KEYS.host_queue(host), priority=LAST, ignore_result=True)
        fleet.redis.hset(KEYS.unacked(f"host:{host}"), "tag", "a message")
    told = app.send_task("mikrom.cleanup", queue=KEYS.queue).get(timeout=240)
    assert told == {"hosts": ["hv02.example"]}
    left = {key.decode() for key in fleet.redis.scan_iter()}
    assert not [key for key in left if "hv02" in key]
    assert {f"{KEYS.host_queue('hv01')}\x06\x16{LAST}", KEYS.unacked("host:hv01")} <= left


def test_a_schedule_that_does_not_come_is_told(fleet: Fleet, beat: Callable[..., subprocess.Popen[bytes]]) -> None:
    def mikrom(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "mikrom_reconcile", *words]
        return subprocess.run(
            argv, env=fleet.environment(), cwd=fleet.folder, capture_output=True, text=True, check=False
        )

    def due_in_s() -> float:
        found: Any = fleet.redis.get(KEYS.next_run)
        return float(found or 0) - time.time()

    (fleet.folder / "web.yml").write_text(WEB)
    specs = {"MIKROM_SPECS": str(fleet.folder / "web.yml")}
    clock = beat(1, "2")
    wait_until(lambda: due_in_s() > 0, "Beat's own word, though no control worker is there")
    fleet.redis.set(KEYS.next_run, time.time() - 3600)
    fleet.worker("host", MIKROM_TEST_BOOT_S="0")
    fleet.worker("control", pool="threads", **specs)
    wait_until(lambda: due_in_s() > 0 and fleet.redis.exists(KEYS.source), "a control worker's word")
    assert mikrom("status").returncode == 0
    clock.kill()
    wait_until(lambda: not fleet.redis.exists(KEYS.tick("reconcile")), "the end of the last interval")
    fleet.redis.set(KEYS.next_run, time.time() - 3600)
    late = "none has come since one was due 1h ago: are Beat and a control worker running?"
    told = mikrom("status")
    assert (told.returncode, late in told.stdout) == (16, True), told.stdout
    told = mikrom("doctor")
    assert (told.returncode, late in told.stdout) == (1, True), told.stdout


def test_where_drift_is_reported_a_scheduled_run_tells_and_a_person_is_obeyed(fleet: Fleet, app: FleetApp) -> None:
    specs = fleet.folder / "web.yml"
    specs.write_text(WEB)
    fleet.worker("host", MIKROM_TEST_BOOT_S="0")
    with closing(Server()) as people:
        told_to = {"MIKROM_WEBHOOKS": f"slack={people.url}", "MIKROM_RECONCILE_MODE": "report"}
        fleet.worker("control", pool="threads", MIKROM_SPECS=str(specs), **told_to)
        assert_told(fleet, app)
        assert len(people.got) == 2, "that nothing is there, and that one is left"


def assert_told(fleet: Fleet, app: FleetApp) -> None:
    fleet.redis.set(KEYS.tick("reconcile"), "now", px=60_000)
    told = send(app, "now").get(timeout=240)
    wait_until(lambda: fleet.redis.hlen(KEYS.told), "people to be told")
    assert done(send(app, "now")) == "nothing to do; 2 changes remain; 2 refused"
    assert (told["done"], told["exit_code"]) == ("nothing to do; 2 changes remain; 2 refused", 8)
    assert not (fleet.folder / "state" / "vms").exists()
    asked = app.send_task("mikrom.create_vm", kwargs={"vm": "web-000"}, queue=KEYS.queue)
    assert done(asked) == "1 create done"
    before = fleet.redis.hgetall(KEYS.told)
    assert done(send(app, "now")) == "nothing to do; 1 changes remain; 1 refused"
    wait_until(lambda: fleet.redis.hgetall(KEYS.told) != before, "people to be told again")

"""Clocks that are an hour off: nothing is lost, nothing is done twice, and Redis's own clock judges what is too old."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest

from mikrom_reconcile.dispatch.app import FleetApp
from tests.fakes import order
from tests.fleet import KEYS, Fleet, assert_once_per_interval, wait_until

pytestmark = pytest.mark.redis

HERE = "localhost"
WEB = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: %d, template: {image: hello}}\n"


@pytest.fixture(scope="module")
def clock() -> Callable[[str], dict[str, str]]:
    """The variables of a process whose clock is that far off."""
    told = subprocess.run(
        ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True, check=True
    )
    return lambda off: {"LD_PRELOAD": told.stdout.strip(), "FAKETIME": off}


def test_beats_whose_clocks_differ_by_an_hour_tick_once_per_interval(
    fleet: Fleet, clock: Callable[[str], dict[str, str]]
) -> None:
    def ticks() -> int:
        return sum(int(fleet.redis.llen(name)) for name in KEYS.lists(KEYS.queue))

    for number, off in enumerate(("-3600", "+3600")):
        argv = [sys.executable, "run_beat.py"]
        own = {"MIKROM_RECONCILE_INTERVAL": "1", "MIKROM_SPECS": "/specs", **clock(off)}
        process = fleet.run(f"beat-{number}", argv, **own)
        fleet.wait_for(f"beat:{HERE}:{process.pid}", process)
    assert_once_per_interval(ticks, interval_s=1)


def test_a_host_and_a_control_worker_two_hours_apart_do_their_work_once(
    fleet: Fleet, app: FleetApp, clock: Callable[[str], dict[str, str]]
) -> None:
    specs = fleet.folder / "web.yml"
    specs.write_text(WEB % 3)
    fleet.worker("host", MIKROM_TEST_BOOT_S="0", MIKROM_TEST_FAILURES="1", **clock("+3600"))
    fleet.worker("control", pool="threads", MIKROM_SPECS=str(specs), **clock("-3600"))

    def run() -> str:
        return str(app.send_task("mikrom.reconcile", queue=KEYS.queue).get(timeout=240)["done"])

    assert run() == "3 create done"
    assert records(fleet) == ["web-000", "web-001", "web-002"]
    assert "retry: Retry in" in fleet.log("host:localhost"), "the attempt after a pause comes in time"
    assert run() == "nothing to do"
    specs.write_text(WEB % 2)
    assert run() == "1 delete done"
    assert records(fleet) == ["web-000", "web-001"]
    late = {"call": "a call that has ended", "order": msgspec.json.encode(order("create", "late", host=HERE)).decode()}
    app.send_task("mikrom.create_vm", kwargs=late, queue=KEYS.host_queue(HERE), ignore_result=True)
    wait_until(lambda: "nobody waits for it any more" in fleet.log("host:localhost"), "the refusal")
    assert records(fleet) == ["web-000", "web-001"]


def records(fleet: Fleet) -> list[str]:
    return sorted(path.parent.name for path in (fleet.folder / "state" / "vms").glob("*/record.json"))

"""A host has one worker: two that share its queue would each know half of its VMs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from mikrom_reconcile.dispatch.presence import Heartbeat, starts, this_machine
from tests.fleet import KEYS, Fleet, wait_until

pytestmark = pytest.mark.redis

RUN_WORKER = [sys.executable, "run_worker.py"]


def refusal(fleet: Fleet, argv: list[str], **more: str) -> str:
    """What a worker says that does not start."""
    worker = fleet.run("second", argv, **more)
    assert worker.wait(timeout=20) == 1
    said = (fleet.folder / "second.log").read_text()
    assert "Traceback" not in said
    return said


def test_a_second_one_is_refused_wherever_its_records_are(fleet: Fleet) -> None:
    first = fleet.worker("host", host="hv01")
    said = refusal(fleet, RUN_WORKER, MIKROM_HOST="hv01", MIKROM_STATE_DIR=f"{fleet.folder}/another")
    assert f"host:hv01 lives already: pid {first.pid} on " in said
    assert "give each its own MIKROM_HOST" in said
    said = refusal(fleet, RUN_WORKER, MIKROM_HOST="hv02")
    assert f"another host worker runs here with MIKROM_STATE_DIR={fleet.folder}/state: end it first" in said
    first.send_signal(signal.SIGKILL)
    first.wait()
    fleet.worker("host", host="hv01")  # its own heartbeat, not expired yet, does not hold it up


def test_one_that_is_nobody_in_particular_does_not_join_a_shared_broker(fleet: Fleet) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "mikrom_reconcile.celery_app", "worker", "-P", "gevent"]
    said = refusal(fleet, argv, MIKROM_BROKER_URL="redis://192.0.2.1:6379/0")
    assert "MIKROM_HOST is localhost, which every machine is: set it to this host's name" in said


def test_of_two_that_start_at_once_one_ends_itself(
    fleet: Fleet, own_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[int, int]] = []
    folders = [own_environment / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    machines = [this_machine(folder) for folder in folders]
    assert machines[0] != machines[1]
    first, second = (Heartbeat(fleet.redis, KEYS, "host:hv01", machine=machine) for machine in machines)
    first.start()
    wait_until(lambda: starts(fleet.redis, KEYS, ["host:hv01"]), "the first heartbeat")
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda pid, number: ended.append((pid, number)))
        second.start()
        wait_until(lambda: ended, "the end of the second")
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert starts(fleet.redis, KEYS, ["host:hv01"]) == {"host:hv01": first.start_id.encode()}
    first.leave()
    second.leave()

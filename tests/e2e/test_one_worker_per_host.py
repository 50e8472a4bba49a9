"""A host has one worker: two that share its queue would each know half of its VMs."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from mikrom_reconcile.dispatch.transport.shared_state import Heartbeat, give_up, machine_id, starts
from tests.fleet import KEYS, Fleet

pytestmark = pytest.mark.redis

RUN_WORKER = [sys.executable, "run_worker.py"]


def refusal(fleet: Fleet, argv: list[str], **more: str) -> str:
    """What a worker says that does not start."""
    worker = fleet.run("second", argv, **more)
    assert worker.wait(timeout=240) == 1
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


def test_a_name_stays_with_its_machine_though_that_stands_still_until_a_person_gives_it_up(fleet: Fleet) -> None:
    first = fleet.worker("host", host="hv01")
    first.send_signal(signal.SIGSTOP)
    fleet.redis.delete(KEYS.heartbeat("host:hv01"))  # as it expires by itself 15 s later
    another = {"MIKROM_HOST": "hv01", "MIKROM_STATE_DIR": f"{fleet.folder}/another"}
    said = refusal(fleet, RUN_WORKER, **another)
    assert "hv01 is the name of another machine (" in said
    assert "free the name: mikrom apply --assume-dead hv01" in said
    assert not fleet.redis.exists(KEYS.heartbeat("host:hv01"))
    first.send_signal(signal.SIGCONT)
    fleet.wait_for("host:hv01", first)
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    fleet.redis.delete(KEYS.heartbeat("host:hv01"))
    give_up(fleet.redis, KEYS, "hv01")
    fleet.worker("host", host="hv01", **{name: value for name, value in another.items() if name != "MIKROM_HOST"})


def test_a_machine_that_was_given_up_while_it_only_stood_still_stops_what_it_runs_before_it_is_seen_again(
    fleet: Fleet, own_environment: Path
) -> None:
    stopped: list[bool] = []
    (own_environment / "one").mkdir()
    heartbeat = Heartbeat(
        fleet.redis, KEYS, "host:hv01", state_dir=own_environment / "one",
        fence=lambda: stopped.append(bool(fleet.redis.exists(KEYS.machine("hv01")))),
    )  # fmt: skip
    heartbeat.start()
    for _ in range(2):  # by the runs of two projects
        give_up(fleet.redis, KEYS, "hv01")
    heartbeat.begin_anew()
    assert stopped == [False]
    heartbeat.begin_anew()
    heartbeat.leave()
    assert stopped == [False]
    assert fleet.redis.exists(KEYS.machine("hv01"))


def test_a_machine_keeps_what_it_is_and_a_copy_of_its_state_folder_elsewhere_is_another(own_environment: Path) -> None:
    folders = [own_environment / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one, two = map(machine_id, folders)
    assert one != two
    assert machine_id(folders[0]) == one


def test_processes_that_make_what_a_machine_is_at_once_agree_on_it(own_environment: Path) -> None:
    begin = Barrier(8)

    def made(_: int) -> str:
        begin.wait()
        return machine_id(own_environment)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(made, range(8))) == {machine_id(own_environment)}
    assert [path.name for path in own_environment.glob("machine*")] == ["machine"]


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
    first, second = (Heartbeat(fleet.redis, KEYS, "host:hv01", state_dir=folder) for folder in folders)
    first.start()
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda pid, number: ended.append((pid, number)))
        second.start()
    assert ended == [(os.getpid(), signal.SIGTERM)]
    assert starts(fleet.redis, KEYS, ["host:hv01"]) == {"host:hv01": first.start_id.encode()}
    first.leave()
    second.leave()

"""The VM tasks as a host worker runs them: what they log, what they do about a failure, and what they answer."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any, get_args

import msgspec
import pytest
from celery.exceptions import Reject
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from mikrom_reconcile import wiring
from mikrom_reconcile.control.snapshot import Snapshots
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, Verb
from mikrom_reconcile.dispatch import celery_patches
from mikrom_reconcile.dispatch.app import FleetApp, make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.dispatch.process import FieldsFormatter, FleetProcess
from mikrom_reconcile.dispatch.transport.order_envelope import priority_of
from mikrom_reconcile.dispatch.transport.rpc import Call, ReplySender, unpack
from tests import fleet as fleet_of_tests
from tests.fakes import HOST, order
from tests.fleet import KEYS, Fleet
from tests.unit.host.conftest import PERMANENT, TEMPORARY, VM, Host, error

pytestmark = pytest.mark.redis

OWNER = f"host:{HOST}"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def redis(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    yield fleet
    fleet.close()


@pytest.fixture
def app(redis: Fleet) -> Iterator[FleetApp]:
    """The app of a host worker."""
    app = make_app(replace(redis.settings(), host=HOST))
    yield app
    app.close()


@pytest.fixture
def replies(app: FleetApp, redis: Fleet, host: Host) -> Iterator[ReplySender]:
    """What its tasks answer with, over a host that fails as told."""
    registered = FleetProcess(
        app, agent=lambda: host.agent, engine=lambda: pytest.fail("no engine"),
        source=wiring.make_source(redis.settings()), store=RedisStore(app.redis, prefix=app.keys.prefix),
        snapshots=Snapshots(lambda: pytest.fail("no engine"), {}, HOST),
    )  # fmt: skip
    registered.replies.start()
    yield registered.replies
    registered.replies.close()


class Worker:
    """Runs VM tasks in this process, and hears what they answer to a call."""

    def __init__(self, app: FleetApp, redis: Redis, replies: ReplySender) -> None:
        self.app = app
        self.replies = replies
        self.redis = redis

    def run(self, sent: Order, **odd: object) -> ActionOutcome:
        with Call(self.redis, KEYS, "a-call") as call:
            call.listen(OWNER)
            arguments = {"call": call.name, "order": msgspec.json.encode(sent).decode(), **odd}
            task = self.app.tasks[f"mikrom.{sent.action.verb}_vm"]
            with ThreadPoolExecutor(1) as pool:
                running, answers = pool.submit(task.apply, kwargs=arguments, task_id="the-task"), call.read(0.1)
                while not running.done():  # who reads renews the call, however slow the machine is
                    answers += call.read(0.1)
            (answer,) = answers or call.read(1)
        return unpack(answer.body, ActionOutcome)


@pytest.fixture
def worker(app: FleetApp, redis: Fleet, replies: ReplySender) -> Worker:
    return Worker(app, redis.redis, replies)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log of mikrom, with the ids of tasks, as a worker writes it."""
    caplog.set_level(logging.INFO, logger="mikrom_reconcile")
    usual = caplog.handler.formatter
    caplog.handler.setFormatter(FieldsFormatter())
    yield caplog
    caplog.handler.setFormatter(usual)


def steps(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and step of each line, once every line has told task, run, VM, host and duration."""
    found = [entry for entry in log.records if entry.name.startswith("mikrom_reconcile.host")]
    for entry in found:
        fields: dict[str, Any] = entry.__dict__
        assert (fields["celery.task_id"], fields["run"], fields["vm"], fields["host"]) == (
            "the-task", "run-1", VM, HOST,
        )  # fmt: skip
        assert fields["duration_s"] >= 0
        assert f"celery.task_id=the-task run=run-1 vm={VM} host={HOST}" in FieldsFormatter().format(entry)
    return [(entry.levelname, entry.step) for entry in found]  # type: ignore[attr-defined]


def test_the_times_of_a_log_are_in_utc_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    record = logging.makeLogRecord({"created": 0.25, "msecs": 250.0, "msg": "ready"})
    assert FieldsFormatter("%(asctime)s %(message)s").format(record) == "1970-01-01 00:00:00.250Z ready"
    monkeypatch.undo()
    time.tzset()


class TestWhatThePredecessorDid:
    def test_create_logs_every_step(self, worker: Worker, log: pytest.LogCaptureFixture) -> None:
        assert worker.run(order("create", VM)).result == "done"
        assert steps(log) == [
            ("INFO", "recording the order"), ("INFO", "starting"), ("INFO", "verifying"), ("INFO", ""),
        ]  # fmt: skip

    def test_create_logs_the_error_and_cleans_up_and_says_so(
        self, worker: Worker, host: Host, log: pytest.LogCaptureFixture
    ) -> None:
        host.driver.faults["start, late"] = [PERMANENT]
        outcome = worker.run(order("create", VM))
        assert steps(log) == [
            ("INFO", "recording the order"), ("WARNING", "starting"), ("WARNING", "cleaning up"), ("WARNING", ""),
        ]  # fmt: skip
        assert "bad kernel" in log.messages[1]
        assert log.messages[2] == f"{VM}: cleaning up: no VMM was left behind"
        assert outcome.result == "failed_permanent"
        assert error(outcome).endswith("(while booting); no VMM was left behind")
        assert host.driver.vmms == {}

    def test_delete_logs_every_step(self, worker: Worker, host: Host, log: pytest.LogCaptureFixture) -> None:
        seen = host.created()
        log.clear()
        assert worker.run(order("delete", VM, seen)).result == "done"
        assert steps(log) == [
            ("INFO", "recording the order"), ("INFO", "stopping"), ("INFO", "removing what its driver made"),
            ("INFO", "removing its record"), ("INFO", ""),
        ]  # fmt: skip

    def test_delete_goes_on_after_a_partial_failure_and_reports_what_remains(
        self, worker: Worker, host: Host, log: pytest.LogCaptureFixture
    ) -> None:
        seen = host.created()
        log.clear()
        host.driver.faults["stop"] = [TEMPORARY]
        host.driver.faults["delete"] = [PERMANENT]
        outcome = worker.run(order("delete", VM, seen))
        assert steps(log) == [
            ("INFO", "recording the order"), ("WARNING", "stopping"), ("INFO", "stopping"),
            ("WARNING", "removing what its driver made"), ("WARNING", ""),
        ]  # fmt: skip
        assert "deleting it all the same" in log.messages[1]
        assert outcome.result == "failed_permanent"
        assert outcome.observed is not None
        assert outcome.observed.phase == "deleting", "its record remains, so that the next run finishes"
        assert outcome.observed.last_error == error(outcome)
        again = worker.run(order("delete", VM, host.record()))
        assert (again.result, again.observed) == ("done", None)


def test_a_fleet_whose_redis_does_not_come_leaves_none(own_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Popen[bytes]] = []

    def never(holds: Any, what: str) -> None:
        begun.append(holds.__self__._redis)
        raise AssertionError(what)

    monkeypatch.setattr(fleet_of_tests, "wait_until", never)
    with pytest.raises(AssertionError, match="the private Redis"):
        Fleet(own_environment)
    assert [process.poll() for process in begun] == [-signal.SIGKILL]


def test_an_envelope_of_another_release_is_answered_at_once(worker: Worker, host: Host) -> None:
    outcome = worker.run(order("create", VM), spent_s="none", release="9.9.9")
    assert (outcome.vm, outcome.result) == (VM, "failed_permanent")
    assert error(outcome).startswith("not an order: Expected `float`, got `str` - at `$.spent_s`; it came from")
    assert host.driver.calls == []


class TestAttempts:
    def test_a_temporary_error_is_tried_three_times_with_growing_pauses(
        self, worker: Worker, host: Host, log: pytest.LogCaptureFixture
    ) -> None:
        host.driver.faults["start"] = [TEMPORARY] * 3
        outcome = worker.run(order("create", VM))
        assert outcome.result == "failed_temporary"
        assert host.record().attempt.count == 3  # type: ignore[union-attr]
        pauses = [float(line.rpartition("again in ")[2].split()[0]) for line in log.messages if "again in" in line]
        assert len(pauses) == 2
        assert 0.5 <= pauses[0] <= 1 <= pauses[1] <= 2

    def test_one_that_passes_is_no_failure(self, worker: Worker, host: Host) -> None:
        host.driver.faults["start"] = [TEMPORARY]
        assert worker.run(order("create", VM)).result == "done"
        assert host.record().attempt is None

    def test_a_permanent_error_is_tried_once(self, worker: Worker, host: Host) -> None:
        host.driver.faults["start"] = [PERMANENT]
        assert worker.run(order("create", VM)).result == "failed_permanent"
        assert host.driver.calls.count("start") == 1

    def test_no_attempt_begins_past_the_deadline(self, worker: Worker, host: Host) -> None:
        host.driver.faults["start"] = [TEMPORARY]
        assert worker.run(order("create", VM, deadline_s=0.4)).result == "failed_temporary"
        assert host.driver.calls.count("start") == 1

    def test_a_worker_that_ends_tries_nothing_again(
        self, worker: Worker, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = iter([False, True])
        monkeypatch.setattr(celery_patches, "is_stopping", lambda: next(asked))
        host.driver.faults["start"] = [TEMPORARY]
        assert worker.run(order("create", VM)).result == "failed_temporary"


class TestALostBroker:
    """Whatever the broker does at that moment, the outcome is told once it is back."""

    def test_is_told_by_an_order_that_was_not_begun_for_it(
        self, worker: Worker, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lost(_: str) -> bool:
            raise RedisConnectionError("reset by peer")

        monkeypatch.setattr(worker.replies, "is_awaited", lost)
        outcome = worker.run(order("create", VM))
        assert (outcome.result, error(outcome)) == (
            "skipped", "it is not known whether anybody waits for it: reset by peer",
        )  # fmt: skip
        assert host.driver.calls == []

    def test_ends_the_attempts_of_an_order_with_what_became_of_the_last(
        self, worker: Worker, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def not_taken(*_: object, **__: object) -> None:
            raise Reject("the broker is away", requeue=False)

        monkeypatch.setattr(worker.app.tasks["mikrom.create_vm"], "retry", not_taken)
        host.driver.faults["start"] = [TEMPORARY]
        assert worker.run(order("create", VM)).result == "failed_temporary"


def test_people_go_before_the_schedule_and_what_makes_room_before_what_takes_it(app: FleetApp) -> None:
    """Sent in the worst order, taken from a real queue in the right one."""
    sent = [
        msgspec.structs.replace(order(verb, verb), scheduled=scheduled)
        for scheduled in (True, False)
        for verb in get_args(Verb)
    ]
    for each in sent:
        app.send_task(
            f"mikrom.{each.action.verb}_vm", queue=KEYS.host_queue(HOST), priority=priority_of(each),
            kwargsrepr=f"{'scheduled ' * each.scheduled}{each.action.verb}",
        )  # fmt: skip
    with app.connection_for_read() as connection, connection.SimpleQueue(KEYS.host_queue(HOST)) as queue:
        taken = []
        for _ in sent:
            message = queue.get(timeout=5)
            taken.append(message.headers["kwargsrepr"])
            message.ack()
    people = sorted(get_args(Verb), key=lambda verb: verb not in {"stop", "suspend", "delete"})
    assert taken == [*people, *(f"scheduled {verb}" for verb in people)]


def test_an_order_travels_with_its_backstop_its_priority_and_no_argument_to_read(app: FleetApp, redis: Fleet) -> None:
    redis.redis.set(KEYS.heartbeat(OWNER), "1-a-worker")
    sent = msgspec.structs.replace(order("delete", VM), scheduled=True)
    (outcome,) = CeleryHosts(app, redis.redis).execute([sent], forks=1, deadline_s=0.1)
    assert outcome.result == "failed_temporary"
    with app.connection_for_read() as connection, connection.SimpleQueue(KEYS.host_queue(HOST)) as queue:
        message = queue.get(timeout=5)
        message.ack()
    assert message.headers["timelimit"] == [sent.action.deadline_s + 30, None]
    assert message.properties["priority"] == 6
    assert (message.headers["argsrepr"], message.headers["kwargsrepr"]) == (
        "(not shown)",
        f"{VM} on {HOST} · run run-1",
    )
    assert message.headers["sent_at"] > 0

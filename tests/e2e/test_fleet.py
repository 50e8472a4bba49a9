"""What a fleet does when something of it dies, comes twice, comes late or is not there."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.errors import MikromError, SetupError, SpecError
from mikrom_reconcile.core.model.observed import ObservedVM, ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, RunRequest
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.dispatch.transport import rpc
from mikrom_reconcile.dispatch.transport.broker import connect
from mikrom_reconcile.dispatch.transport.rpc import Call, unpack
from mikrom_reconcile.times_and_sizes import BROKER
from tests.fakes import order
from tests.fleet import KEYS, READY_S, ROOT, Fleet, wait_until

pytestmark = pytest.mark.redis

T = TypeVar("T")

HERE = "localhost"
OWNER = f"host:{HERE}"
FOR_EVER = {"MIKROM_TEST_BOOT_S": "30"}


class Side:
    """The control side, in the process of the test."""

    def __init__(self, fleet: Fleet) -> None:
        settings = fleet.settings()
        self.app = make_app(settings)
        self.hosts = CeleryHosts(self.app, fleet.redis)
        self.engine = wiring.make_reconciler(settings, self.hosts, RedisStore(fleet.redis, prefix=KEYS.prefix))

    def rows(self) -> dict[str, ObservedVM]:
        (view,) = self.hosts.observe({HERE: ObserveQuery()}, deadline_s=30)
        assert view.report is not None, view.error
        return {row.name: row for row in view.report.vms}

    def send(self, task: str, call: str, sent: Order) -> None:
        """An order past every rule of the sender."""
        arguments = {"call": call, "order": msgspec.json.encode(sent).decode()}
        self.app.send_task(task, kwargs=arguments, queue=KEYS.host_queue(HERE), ignore_result=True)


@pytest.fixture
def side(fleet: Fleet) -> Iterator[Side]:
    side = Side(fleet)
    yield side
    side.app.close()


@pytest.fixture
def background() -> Iterator[Callable[[Callable[[], T]], Future[T]]]:
    with ThreadPoolExecutor() as pool:
        yield pool.submit


def request(replicas: int, *, run_id: str = "run-1", forks: int = 32, text: str = "") -> RunRequest:
    template = "template: {image: hello, machine: {mem_size_mib: 4}}"
    fleet = f"apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {{name: web}}\nspec: {{replicas: {replicas}, {template}}}\n"
    tree = SourceTree(revision="r1", files=(SourceFile(path="web.yml", text=text or fleet),))
    return RunRequest(run_id=run_id, origin="a test", tree=tree, forks=forks, timeout_s=30)


def silent(_: ActionOutcome) -> None:
    pass


def wait_for_action(fleet: Fleet, vm: str) -> None:
    wait_until((fleet.folder / "state" / "vms" / vm).exists, f"{vm} to be begun")


def answers(call: Call, count: int) -> list[ActionOutcome]:
    outcomes: list[ActionOutcome] = []
    until = time.monotonic() + 60
    while len(outcomes) < count:
        assert time.monotonic() < until, f"{len(outcomes)} of {count} outcomes came"
        outcomes.extend(unpack(answer.body, ActionOutcome) for answer in call.read(0.5))
    return outcomes


def test_a_worker_killed_in_the_middle_fails_its_actions_at_once_and_the_next_run_converges(
    fleet: Fleet, side: Side, background: Callable[..., Future[T]]
) -> None:
    worker = fleet.worker("host", **FOR_EVER)
    told = background(lambda: side.engine.apply(request(4), None, progress=silent))
    wait_for_action(fleet, "web-003")
    worker.kill()
    worker.wait()
    fleet.worker("host", MIKROM_TEST_BOOT_S="0")
    back_at = time.monotonic()
    outcomes = told.result().outcomes  # type: ignore[attr-defined]
    assert time.monotonic() - back_at < 15  # it would be the 30 s of the run
    assert {outcome.result for outcome in outcomes} == {"failed_temporary"}
    assert {outcome.error for outcome in outcomes} == {"the host's worker died, was restarted or lost its broker"}
    report = side.engine.apply(request(4, run_id="run-2"), None, progress=silent)
    assert report.remaining is not None
    assert report.remaining.changes == ()
    assert [(row.name, row.phase) for row in side.rows().values()] == [(f"web-00{n}", "running") for n in range(4)]


def test_a_worker_told_to_end_ends_what_runs_says_so_and_is_gone_in_time(
    fleet: Fleet, side: Side, background: Callable[..., Future[T]]
) -> None:
    worker = fleet.worker("host", **FOR_EVER)
    orders = [order("create", f"vm-{number}", host=HERE) for number in range(3)]
    told = background(lambda: list(side.hosts.execute(orders, forks=32, deadline_s=25)))
    wait_for_action(fleet, "vm-2")
    asked_at = time.monotonic()
    worker.terminate()
    outcomes: list[ActionOutcome] = told.result()  # type: ignore[assignment]
    assert time.monotonic() - asked_at < 15  # it would be the 25 s of the deadline
    assert {outcome.result for outcome in outcomes} == {"failed_temporary"}
    assert all("is being stopped" in (outcome.error or "") for outcome in outcomes)
    assert worker.wait(timeout=240) == 0
    assert side.hosts.names() == (HERE,)  # known still, so that `get vms` says that it is dark
    (view,) = side.hosts.observe({HERE: ObserveQuery()}, deadline_s=30)
    assert "no worker answers" in view.error


@pytest.mark.soak
def test_a_worker_that_hangs_in_its_end_says_where_and_is_gone_before_supervisors_kill(fleet: Fleet) -> None:
    worker = fleet.worker("host", MIKROM_TEST_HANG="1")
    worker.terminate()
    assert worker.wait(timeout=240) == 1
    told = fleet.log(OWNER)
    assert "this worker was told to end and hangs" in told
    assert "tests/slow_app.py" in told


def test_an_order_delivered_twice_at_once_has_one_effect(fleet: Fleet, side: Side) -> None:
    fleet.worker("host")
    sent = order("create", "vm-1", host=HERE)
    with Call(fleet.redis, KEYS, "twice") as call:
        call.listen(OWNER)
        side.send("mikrom.create_vm", call.name, sent)
        side.send("mikrom.create_vm", call.name, sent)
        results = sorted(outcome.result for outcome in answers(call, 2))
    assert results == ["already_done", "done"]  # the second may have met the lock, and came again
    assert side.rows()["vm-1"].generation == 1


@pytest.mark.parametrize(("failures", "result"), [(2, "done"), (3, "failed_temporary")])
def test_a_temporary_failure_is_tried_again_by_the_same_worker(
    fleet: Fleet, side: Side, failures: int, result: str
) -> None:
    fleet.worker("host", MIKROM_TEST_BOOT_S="0", MIKROM_TEST_FAILURES=str(failures))
    (outcome,) = side.hosts.execute([order("create", "vm-1", host=HERE)], forks=1, deadline_s=30)
    assert outcome.result == result
    told = fleet.log(OWNER)
    assert told.count("vm-1: starting: failed: vm-1: no memory") == failures
    assert told.count("retry: Retry in ") == 2
    assert 'step="attempt 2 of 3"' in told


def test_an_order_that_nobody_waits_for_is_not_begun(fleet: Fleet, side: Side) -> None:
    fleet.worker("host")
    side.send("mikrom.create_vm", "a call that has ended", order("create", "late", host=HERE))
    wait_until(lambda: "nobody waits for it any more" in fleet.log(OWNER), "the refusal")
    assert side.rows() == {}


def test_an_order_for_another_host_or_under_another_name_is_not_carried_out(fleet: Fleet, side: Side) -> None:
    fleet.worker("host")
    with Call(fleet.redis, KEYS, "forged") as call:
        call.listen(OWNER)
        side.send("mikrom.create_vm", call.name, order("create", "elsewhere", host="hv02"))
        side.send("mikrom.delete_vm", call.name, order("create", "renamed", host=HERE))
        told = {outcome.vm: (outcome.result, outcome.error) for outcome in answers(call, 2)}
    assert told["elsewhere"] == ("skipped", "the order is for host hv02, this is localhost")
    assert told["renamed"] == ("skipped", "the order says create")
    assert side.rows() == {}


def test_a_vm_task_by_hand_belongs_to_control(fleet: Fleet, side: Side) -> None:
    fleet.worker("host")
    sent = side.app.send_task("mikrom.stop_vm", args=["web-000"], queue=KEYS.host_queue(HERE))
    told = sent.get(timeout=240)
    assert told["done"] == "nothing: mikrom.stop_vm takes the name of a VM, and goes to the control queue mikrom:queue"
    assert told["exit_code"] == 64


def test_what_is_no_order_and_no_message_of_celery_does_not_end_the_worker(fleet: Fleet, side: Side) -> None:
    worker = fleet.worker("host")
    junk = {"call": "junk", "order": '{"verb": "delete everything"}'}
    side.app.send_task("mikrom.delete_vm", kwargs=junk, queue=KEYS.host_queue(HERE), ignore_result=True)
    side.app.send_task("mikrom.no_such_task", queue=KEYS.host_queue(HERE), ignore_result=True)
    wait_until(lambda: "not an order" in fleet.log(OWNER), "the complaint")
    assert side.rows() == {}
    assert worker.poll() is None


def test_run_worker_carries_out_orders_and_its_log_names_the_task_the_run_and_the_vm(fleet: Fleet, side: Side) -> None:
    worker = fleet.run("host-localhost", [sys.executable, "run_worker.py"])
    fleet.wait_for(OWNER, worker)
    (outcome,) = side.hosts.execute([order("create", "vm-1", host=HERE)], forks=1, deadline_s=30)
    assert outcome.result == "done"
    wait_until(lambda: "vm-1: starting" in fleet.log(OWNER), "the log")
    (line,) = [line for line in fleet.log(OWNER).splitlines() if "vm-1: starting" in line]
    fields = dict(field.split("=", 1) for field in line.rpartition("[")[2].rstrip("]").split(" "))
    assert (fields["vm"], fields["run"], fields["host"]) == ("vm-1", "run-1", HERE)
    assert len(fields["celery.task_id"]) == 36


def test_a_broker_lost_in_the_middle_ends_the_run_with_what_is_known(
    fleet: Fleet, side: Side, background: Callable[..., Future[T]]
) -> None:
    fleet.worker("host", **FOR_EVER)
    orders = [order("create", f"vm-{number}", host=HERE) for number in range(3)]
    told = background(lambda: list(side.hosts.execute(orders, forks=2, deadline_s=25)))
    wait_for_action(fleet, "vm-1")
    fleet.stop_redis()
    outcomes: list[ActionOutcome] = told.result(timeout=15)  # type: ignore[assignment]
    by_vm = {outcome.vm: outcome.result for outcome in outcomes}
    assert by_vm == {"vm-0": "failed_temporary", "vm-1": "failed_temporary", "vm-2": "skipped"}
    assert all("the broker was lost" in (outcome.error or "") for outcome in outcomes)
    (view,) = side.hosts.observe({HERE: ObserveQuery()}, deadline_s=30)
    assert "the broker was lost" in view.error


@pytest.mark.parametrize("kind", ["refused", "silent"])
def test_a_broker_that_does_not_answer_is_told_within_three_seconds(kind: str) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if kind == "silent":
            listening.listen()
        url = f"redis://:secret@127.0.0.1:{listening.getsockname()[1]}/0"
        began = time.monotonic()
        with pytest.raises(SetupError, match=r"no answer from the broker redis://:\*\*\*@127") as told:
            connect(url)
    assert time.monotonic() - began < 2
    assert "secret" not in str(told.value)


def test_the_command_line_soon_says_that_its_broker_is_away(own_environment: Path) -> None:
    (own_environment / "web.yml").write_text(request(1).tree.files[0].text)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"redis://127.0.0.1:{listening.getsockname()[1]}/0"
        began = time.monotonic()
        argv = [sys.executable, "-m", "mikrom_reconcile", "plan", str(own_environment / "web.yml")]
        ended = subprocess.run(
            argv, env=Fleet.environment_of(own_environment, url), capture_output=True, cwd=ROOT, check=False
        )
    assert time.monotonic() - began < 40  # 2.4 s on a machine with time to spare; more than 75 s without the preflight
    assert ended.returncode == 1
    assert b"no answer from the broker" in ended.stderr


class TestTheRemoteEngine:
    def test_says_at_once_that_there_is_no_control_worker(self, fleet: Fleet) -> None:
        engine = wiring.remote_engine(fleet.settings(), fleet.url)
        began = time.monotonic()
        with pytest.raises(MikromError, match="no control worker answers; start `mikrom worker --role control`"):
            engine.plan(request(1))
        assert time.monotonic() - began < 30  # it would be two minutes

    def test_plans_applies_and_tells_each_outcome_as_it_comes(self, fleet: Fleet) -> None:
        fleet.worker("host", MIKROM_TEST_BOOT_S="0")
        fleet.worker("control", pool="threads")
        engine = wiring.remote_engine(fleet.settings(), fleet.url)
        plan = engine.plan(request(5))
        heard: list[ActionOutcome] = []
        report = engine.apply(request(5), plan, progress=heard.append)
        assert len(plan.actions) == 5
        assert tuple(heard) == report.outcomes
        assert {outcome.result for outcome in heard} == {"done"}
        assert report.remaining is not None
        assert report.remaining.changes == ()
        assert [run.run_id for run in engine.store.runs(1)] == [report.run_id]
        assert engine.plan(request(5, run_id="run-2")).changes == ()
        again = engine.apply(
            request(5, run_id="run-3"), plan, progress=silent
        )  # a plan that was saved and brought back
        assert (again.plan.id, again.outcomes) == (plan.id, ())
        assert "mikrom.plan" in fleet.log("control:localhost").partition("ready.")[2]
        assert "mikrom.plan" not in fleet.log(OWNER).partition("ready.")[2], "each queue has an exchange of its own"

    def test_goes_on_while_who_shows_its_answers_stands_still(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            rpc, "BROKER", msgspec.structs.replace(BROKER, heartbeat_ttl_s=1.0, heartbeat_interval_s=0.2)
        )
        fleet.worker("host", MIKROM_TEST_BOOT_S="0")
        fleet.worker("control", pool="threads")
        engine = wiring.remote_engine(fleet.settings(), fleet.url)
        report = engine.apply(request(3), None, progress=lambda _: time.sleep(1.5))
        assert [outcome.result for outcome in report.outcomes] == ["done"] * 3

    def test_carries_out_deeds_by_name_and_reads_consoles_on(self, fleet: Fleet) -> None:
        fleet.worker("host", MIKROM_TEST_BOOT_S="0")
        fleet.worker("control", pool="threads")
        engine = wiring.remote_engine(fleet.settings(), fleet.url)
        engine.apply(request(3), None, progress=silent)
        for verb, phase in (("pause", "paused"), ("resume", "running"), ("restart", "running"), ("stop", "stopped")):
            asked = msgspec.structs.replace(request(0, run_id=verb), verb=verb, names=("web-00[01]",))
            report = engine.apply(asked, engine.plan(asked), progress=silent)
            assert [outcome.result for outcome in report.outcomes] == ["done", "done"], report.outcomes
            assert report.remaining is not None
            assert report.remaining.changes == ()
            (view,) = engine.hosts.observe({HERE: ObserveQuery(strays=True)}, deadline_s=30)
            assert view.report is not None
            assert [row.phase for row in view.report.vms] == [phase, phase, "running"]
            assert view.report.strays == ()
        whole = engine.hosts.console(HERE, "web-002", max_bytes=1000)
        assert whole.content.startswith(b"MIKROM-UP")
        assert engine.hosts.console(HERE, "web-002", max_bytes=1000, after=3).content == whole.content[3:]

    def test_raises_what_is_wrong_with_the_specs_with_every_problem(self, fleet: Fleet) -> None:
        fleet.worker("control", pool="threads")
        engine = wiring.remote_engine(fleet.settings(), fleet.url)
        with pytest.raises(SpecError) as told:
            engine.plan(
                request(1, text="apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: WEB}\nspec: {replica: 1}\n")
            )
        assert {problem.path for problem in told.value.problems} == {"web.yml"}
        assert len(told.value.problems) > 1

    def test_says_that_its_control_worker_died(self, fleet: Fleet, background: Callable[..., Future[T]]) -> None:
        fleet.worker("host", **FOR_EVER)
        control = fleet.worker("control", pool="threads")
        engine = wiring.remote_engine(fleet.settings(), fleet.url)
        told = background(lambda: engine.apply(request(2), None, progress=silent))
        wait_for_action(fleet, "web-001")
        control.kill()
        fleet.redis.delete(KEYS.heartbeat(f"control:{HERE}:{control.pid}"))  # rather than wait for its TTL of 15 s
        with pytest.raises(MikromError, match="the control worker died"):
            told.result(timeout=20)

    def test_says_that_its_control_worker_was_told_to_end(
        self, fleet: Fleet, background: Callable[..., Future[T]]
    ) -> None:
        fleet.worker("host", **FOR_EVER)
        control = fleet.worker("control", pool="threads")
        engine = wiring.remote_engine(fleet.settings(), fleet.url)
        told = background(lambda: engine.apply(request(2), None, progress=silent))
        wait_for_action(fleet, "web-001")
        control.terminate()
        with pytest.raises(MikromError, match="this worker is being stopped"):
            told.result(timeout=15)
        assert control.wait(timeout=240) == 0
        engine.store.lease("default", holder="the next run", ttl_s=1, at_least=1).release()

    def test_leaving_it_ends_the_run(self, fleet: Fleet) -> None:
        fleet.worker("host", MIKROM_TEST_BOOT_S="0.5")
        fleet.worker("control", pool="threads")
        engine = wiring.remote_engine(fleet.settings(), fleet.url)

        def leave(outcome: ActionOutcome) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.apply(request(12, forks=1), None, progress=leave)
        wait_until(lambda: "the caller has gone" in fleet.log("control:localhost"), "the end of the run")
        time.sleep(1)
        (view,) = engine.hosts.observe({HERE: ObserveQuery()}, deadline_s=30)
        assert view.report is not None
        assert len(view.report.vms) <= 4
        engine.store.lease("default", holder="the next run", ttl_s=1, at_least=1).release()


def test_a_stalled_disk_makes_no_worker_look_dead(
    fleet: Fleet, side: Side, background: Callable[..., Future[T]]
) -> None:
    def lives_ms() -> int:
        left: int = fleet.redis.pttl(KEYS.heartbeat(OWNER))
        assert left > 0, "it looks dead"
        return left

    stall = fleet.folder / "stall"
    fleet.worker("host", MIKROM_TEST_BOOT_S="0", MIKROM_TEST_STALL=str(stall))
    ping = side.app.control.inspect(destination=[f"host@{HERE}"], timeout=20, limit=1).ping
    wait_until(ping, "the first answer to a ping")  # a worker is ready a moment before it listens to broadcasts
    stall.touch()
    orders = [order("create", f"vm-{number}", host=HERE, deadline_s=READY_S) for number in range(20)]
    told = background(lambda: list(side.hosts.execute(orders, forks=20, deadline_s=READY_S)))
    wait_until((fleet.folder / "state" / "vms" / "vm-1").exists, "vm-1 to be begun")
    lived_ms = lives_ms()
    wait_until(lambda: lives_ms() > lived_ms, "its next heartbeat, which is due every five seconds")
    assert ping() == {f"host@{HERE}": {"ok": "pong"}}
    assert not told.done()
    stall.unlink()
    outcomes: list[ActionOutcome] = told.result(timeout=240)  # type: ignore[assignment]
    assert [(outcome.result, outcome.error) for outcome in outcomes] == [("done", None)] * 20

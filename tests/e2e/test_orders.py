"""Orders that nobody of the control side made, or that this release cannot read, change nothing and are answered."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mikrom_reconcile import __version__, wiring
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, RunRequest
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.dispatch.transport.rpc import Call, unpack
from mikrom_reconcile.dispatch.transport.shared_state import starts
from mikrom_reconcile.dispatch.transport.signing import Signer, make_pair
from mikrom_reconcile.services.commands import Child, end_all
from tests.fakes import order
from tests.fleet import KEYS, Fleet, wait_until

pytestmark = pytest.mark.redis

HERE = "localhost"
OWNER = f"host:{HERE}"
QUEUE = KEYS.host_queue(HERE)


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    make_pair(own_environment / "signing.pem", own_environment / "verify.pem")
    try:
        yield fleet
    finally:
        fleet.close()


class Control:
    """The control side in the process of the test, and whoever else reaches the host's queue."""

    def __init__(self, fleet: Fleet, **more: str) -> None:
        self.fleet = fleet
        self.settings = fleet.settings(**more)
        self.app = make_app(self.settings)
        self.hosts = CeleryHosts(self.app, fleet.redis)

    def sign(self, sent: Order, call: str) -> dict[str, str]:
        text = msgspec.json.encode(sent).decode()
        start: Any = self.fleet.redis.get(KEYS.heartbeat(OWNER))
        signer = Signer(self.fleet.folder / "signing.pem")
        return {"order": text, "signature": signer.sign(text, queue=QUEUE, start_id=start.decode(), call=call)}

    def tell(self, task: str, call: Call, **arguments: str) -> ActionOutcome:
        """What the host's worker answers to a message that somebody put into its queue."""
        call.listen(OWNER)
        self.app.send_task(task, kwargs={"call": call.name, **arguments}, queue=QUEUE, ignore_result=True)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for answer in call.read(0.5):
                return unpack(answer.body, ActionOutcome)
        raise AssertionError("no answer")

    def vms(self) -> list[str]:
        (view,) = self.hosts.observe({HERE: ObserveQuery()}, deadline_s=30)
        assert view.report is not None, view.error
        return [row.name for row in view.report.vms]


@pytest.fixture
def signing(fleet: Fleet) -> Iterator[Control]:
    fleet.worker("host", MIKROM_TEST_BOOT_S="0", MIKROM_VERIFY_KEY=str(fleet.folder / "verify.pem"))
    control = Control(fleet, MIKROM_SIGNING_KEY=str(fleet.folder / "signing.pem"))
    yield control
    control.app.close()


def test_a_host_with_a_verify_key_obeys_orders_that_are_signed(signing: Control) -> None:
    outcomes = signing.hosts.execute([order("create", f"vm-{n}", host=HERE) for n in range(3)], forks=2, deadline_s=9)
    assert [outcome.result for outcome in outcomes] == ["done"] * 3
    assert signing.vms() == ["vm-0", "vm-1", "vm-2"]


def test_it_refuses_for_good_what_control_did_not_sign(fleet: Fleet, signing: Control) -> None:
    unsigned = Control(fleet)
    (outcome,) = unsigned.hosts.execute([order("create", "vm-1", host=HERE)], forks=1, deadline_s=9)
    assert (outcome.vm, outcome.result) == ("vm-1", "failed_permanent")
    assert "is not signed, and this host has MIKROM_VERIFY_KEY" in (outcome.error or "")
    wait_until(lambda: "create: refused, the order is not signed" in fleet.log(OWNER), "the line in the log")
    assert signing.vms() == []


def test_it_fetches_images_for_control_only(fleet: Fleet, signing: Control) -> None:
    kernel = fleet.folder / "state" / "images" / "kernel"
    kernel.parent.mkdir()
    kernel.write_bytes(b"kernel")
    digest = hashlib.sha256(b"kernel").hexdigest()
    file = PinnedFile(source=kernel.as_uri(), sha256=digest)
    unsigned, query = Control(fleet), {HERE: ObserveQuery(images=True, fetch=(file,), fetch_s=8)}
    (refused,) = unsigned.hosts.observe(query, deadline_s=9)
    assert "this host has MIKROM_VERIFY_KEY" in refused.error
    assert not (kernel.parent / "sha256" / digest).exists()
    (found,) = signing.hosts.observe(query, deadline_s=9)
    assert found.report is not None
    assert [cached.sha256 for cached in found.report.images] == [digest]
    assert (kernel.parent / "sha256" / digest).read_bytes() == b"kernel"
    unsigned.app.close()


def _another_vm(sent: dict[str, str]) -> dict[str, str]:
    return {**sent, "order": sent["order"].replace("vm-1", "vm-2")}


def _another_signature(sent: dict[str, str]) -> dict[str, str]:
    flipped = "0" if sent["signature"][0] != "0" else "1"
    return {**sent, "signature": flipped + sent["signature"][1:]}


@pytest.mark.parametrize("tamper", [_another_vm, _another_signature])
def test_a_tampered_order_does_nothing(signing: Control, tamper: Callable[[dict[str, str]], dict[str, str]]) -> None:
    with Call(signing.fleet.redis, KEYS, "tampered") as call:
        sent = tamper(signing.sign(order("create", "vm-1", host=HERE), call.name))
        outcome = signing.tell("mikrom.create_vm", call, **sent)
    assert outcome.result == "failed_permanent"
    assert "is not what control signed for this worker" in (outcome.error or "")
    assert signing.vms() == []
    assert not (signing.fleet.folder / "state" / "vms").exists(), "no record was ever begun"


def test_a_signed_order_under_the_name_of_another_task_does_nothing(signing: Control) -> None:
    with Call(signing.fleet.redis, KEYS, "renamed") as call:
        sent = signing.sign(order("create", "vm-1", host=HERE), call.name)
        outcome = signing.tell("mikrom.delete_vm", call, **sent)
    assert (outcome.result, outcome.error) == ("skipped", "the order says create")
    assert signing.vms() == []


def test_an_order_that_is_sent_again_does_nothing(fleet: Fleet, signing: Control) -> None:
    with Call(fleet.redis, KEYS, "first") as call:
        sent = signing.sign(order("create", "vm-1", host=HERE), call.name)
        assert signing.tell("mikrom.create_vm", call, **sent).result == "done"
        assert signing.tell("mikrom.create_vm", call, **sent).result == "already_done"
    with Call(fleet.redis, KEYS, "second") as call:
        assert "is not what control signed" in (signing.tell("mikrom.create_vm", call, **sent).error or "")


def test_an_order_that_was_held_back_is_worth_nothing_to_the_next_worker(fleet: Fleet) -> None:
    key = {"MIKROM_VERIFY_KEY": str(fleet.folder / "verify.pem")}
    first = fleet.worker("host", **key)
    control = Control(fleet)
    with Call(fleet.redis, KEYS, "held") as call:
        sent = control.sign(order("create", "vm-1", host=HERE), call.name)
        first.kill()
        first.wait()
        fleet.worker("host", **key)
        outcome = control.tell("mikrom.create_vm", call, **sent)
    assert "is not what control signed for this worker" in (outcome.error or "")
    assert control.vms() == []
    control.app.close()


def test_a_worker_does_not_start_with_a_key_that_others_may_have_changed(fleet: Fleet) -> None:
    (fleet.folder / "verify.pem").chmod(0o666)
    argv = [sys.executable, "run_worker.py"]
    worker = fleet.run("host-localhost", argv, MIKROM_VERIFY_KEY=str(fleet.folder / "verify.pem"))
    assert worker.wait(timeout=240) != 0
    assert "mikrom worker: MIKROM_VERIFY_KEY=" in fleet.log(OWNER)
    assert "has mode 0666" in fleet.log(OWNER)
    assert "Traceback" not in fleet.log(OWNER)


def test_who_inspects_a_worker_sees_no_argument_of_what_it_does(fleet: Fleet) -> None:
    fleet.worker("host", MIKROM_TEST_BOOT_S="20")
    control = Control(fleet)
    with ThreadPoolExecutor() as pool:
        outcomes = control.hosts.execute([order("create", "vm-1", host=HERE)], forks=1, deadline_s=4)
        told = pool.submit(list, outcomes)
        wait_until((fleet.folder / "state" / "vms" / "vm-1").exists, "the action")
        (active,) = control.app.control.inspect(timeout=1).active().values()
        assert [(task["name"], task["args"], task["kwargs"]) for task in active] == [
            ("mikrom.create_vm", "(not shown)", "vm-1 on localhost · run run-1")
        ]
        assert [outcome.result for outcome in told.result()] == ["failed_temporary"]
    control.app.close()


class TestAnOrderThatCannotBeRead:
    @pytest.fixture
    def control(self, fleet: Fleet) -> Iterator[Control]:
        fleet.worker("host", MIKROM_TEST_BOOT_S="0")
        control = Control(fleet)
        yield control
        control.app.close()

    def test_is_answered_at_once_with_the_release_that_sent_it(self, control: Control) -> None:
        sent = order("create", "vm-1", host=HERE)
        document = msgspec.to_builtins(sent)
        document["action"]["verb"] = "teleport"
        outcome = self.tell(control, document)
        assert (outcome.action_id, outcome.vm, outcome.result) == (sent.action.id, "vm-1", "failed_permanent")
        assert f"it came from mikrom 9.9.9, this is {__version__}" in (outcome.error or "")

    def test_is_refused_whole_when_only_a_field_of_it_is_new(self, control: Control) -> None:
        document = msgspec.to_builtins(order("create", "vm-1", host=HERE))
        document["action"]["desired"]["spec"]["teleporter"] = True
        outcome = self.tell(control, document)
        assert outcome.result == "failed_permanent"
        assert "says something that this host does not know; it came from mikrom 9.9.9" in (outcome.error or "")
        assert control.vms() == []

    def test_is_answered_even_if_it_is_no_json_at_all(self, control: Control) -> None:
        with Call(control.fleet.redis, KEYS, "garbage") as call:
            outcome = control.tell("mikrom.delete_vm", call, order="\0garbage", release="9.9.9")
        assert outcome.result == "failed_permanent"
        assert "not an order" in (outcome.error or "")

    def test_does_not_silence_its_host_even_if_nobody_can_be_answered(self, control: Control) -> None:
        for arguments in ({"call": "\ud800", "order": "{}"}, {"call": 7, "order": []}, {"nothing": "of the kind"}):
            control.app.send_task("mikrom.create_vm", kwargs=arguments, queue=QUEUE, ignore_result=True)
        for asked in ({"call": "\ud800", "query": "{}"}, {"call": {}, "query": "{}"}):
            control.app.send_task("mikrom.observe_host", kwargs=asked, queue=QUEUE, ignore_result=True)
        odd = {"call": "odd", "vm": "../../etc", "max_bytes": -1, "after": -1}
        control.app.send_task("mikrom.console", kwargs=odd, queue=QUEUE, ignore_result=True)
        assert control.vms() == []

    @staticmethod
    def tell(control: Control, document: Any) -> ActionOutcome:
        with Call(control.fleet.redis, KEYS, "newer") as call:
            text = msgspec.json.encode(document).decode()
            return control.tell("mikrom.create_vm", call, order=text, release="9.9.9", a_new_argument="!")


def test_garbage_in_a_queue_ends_a_worker_that_is_started_again_and_the_next_run_converges(
    fleet: Fleet,
) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "tests.slow_app", "worker", "-P", "gevent", "-c", "8", "-l", "INFO"]
    worker = Child("host", argv, fleet.environment(MIKROM_TEST_BOOT_S="0.5"), log=fleet.folder / "host-localhost.log")
    told: list[str] = []

    def keep_until(holds: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < until, told
            if (news := worker.keep()) is not None:
                told.append(news)
            time.sleep(0.02)

    def living() -> bytes | None:
        return starts(fleet.redis, KEYS, [OWNER]).get(OWNER)

    try:
        keep_until(lambda: living() is not None)
        first, control = living(), Control(fleet)
        engine = wiring.make_reconciler(control.settings, control.hosts, RedisStore(fleet.redis, prefix=KEYS.prefix))
        with ThreadPoolExecutor() as pool:
            report = pool.submit(engine.apply, _request(6), None, progress=lambda _: None)
            keep_until((fleet.folder / "state" / "vms" / "web-001").exists)
            fleet.redis.lpush(QUEUE, b"\xff raw garbage, no JSON")
            keep_until(report.done)
        keep_until(lambda: any(news.startswith("host: ended") for news in told))  # it may end what runs first
        assert {outcome.result for outcome in report.result().outcomes} <= {"done", "failed_temporary"}
        keep_until(lambda: living() not in {None, first})
        again = engine.apply(_request(6), None, progress=lambda _: None)
        assert getattr(again.remaining, "changes", None) == ()
        records = (fleet.folder / "state" / "vms").glob("*/record.json")
        assert sorted(path.parent.name for path in records) == [f"web-00{n}" for n in range(6)]
    finally:
        end_all([worker], within_s=0)


def _request(replicas: int) -> RunRequest:
    template = "template: {image: hello, machine: {mem_size_mib: 4}}"
    text = f"apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {{name: web}}\nspec: {{replicas: {replicas}, {template}}}\n"
    tree = SourceTree(revision="r1", files=(SourceFile(path="web.yml", text=text),))
    return RunRequest(run_id="run-1", origin="a test", tree=tree, forks=2, timeout_s=30)

"""What goes wrong around a run of a fleet of real microVMs: nothing is lost or doubled, and the next run converges.

What is judged is /proc, and each VMM's own word about its configuration; of mikrom only exit codes are believed.
`test_kill` kills, `test_clocks` moves clocks, `test_orders` and `test_guarded_fleet` know the wicked.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import RunReport, RunRequest
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from tests.e2e.conftest import HOST, SPECS, VMS, Site, end_of, names
from tests.fleet import KEYS, wait_until

pytestmark = [pytest.mark.kvm, pytest.mark.redis]

FAILED, UNREACHABLE = 2, 4


def test_redis_started_again_empty_amid_a_run_loses_nothing(site: Site) -> None:
    specs = site.write()
    run = site.begin_and_wait_for(3, specs)
    site.fleet.stop_redis()
    code, said = end_of(run, within_s=20)
    assert code != 0
    assert "was lost" in said
    before = site.vmms()
    assert len(before) >= 3
    site.fleet.start_redis()
    assert site.fleet.redis.get("mikrom:token:faults") is None, "it is empty"
    site.fleet.wait_for(HOST, site.host)
    site.fleet.wait_for(f"control:localhost:{site.control.pid}", site.control)
    site.apply(specs)
    site.assert_as_wanted()
    assert site.vmms().items() >= before.items()
    assert site.watch.started == VMS


def test_a_redis_that_falls_silent_amid_a_run_is_told_and_loses_nothing(site: Site) -> None:
    specs = site.write()
    run = site.begin_and_wait_for(3, specs)
    with site.fleet.silent_redis():
        silent_at = time.monotonic()
        code, said = end_of(run, within_s=20)
        assert time.monotonic() - silent_at < 20  # a read that may block waits for 5 s, and a run for a minute
        assert code != 0
        assert "was lost" in said
        code, said = end_of(site.begin(specs))
        assert code == 1
        assert "no answer from the broker" in said
        before = site.vmms()
    site.apply(specs)
    site.assert_as_wanted()
    assert site.vmms().items() >= before.items()
    assert site.watch.started == VMS


def test_a_host_worker_told_to_end_amid_a_run_leaves_its_vms_and_the_next_run_converges(site: Site) -> None:
    specs = site.write()
    run = site.begin_and_wait_for(3, specs)
    site.host.terminate()
    assert site.host.wait(timeout=240) == 0
    before = site.vmms()
    code, _ = end_of(run)
    assert code in {FAILED, UNREACHABLE, FAILED + UNREACHABLE}
    assert site.vmms() == before
    assert len(before) >= 3
    site.host_worker()
    site.apply(specs)
    site.assert_as_wanted()
    assert site.vmms().items() >= before.items()


@pytest.mark.soak
@pytest.mark.parametrize("broker", ["one broker", "a broker each"])
def test_of_two_controllers_with_different_specs_one_has_its_way_and_then_the_other(site: Site, broker: str) -> None:
    """With a broker each, they know nothing of each other: only the host tells their tokens apart."""
    wants = {site.write(name="one"): (VMS, "first"), site.write(VMS + 4, "second", name="two"): (VMS + 4, "second")}
    site.control_worker()
    more = {} if broker == "one broker" else {"MIKROM_BROKER_URL": ""}
    for _ in range(2):
        runs = [site.begin(specs, **own) for specs, own in zip(wants, ({}, more), strict=True)]
        for run in runs:
            end_of(run)
        assert site.watch.doubles == []
        assert set(names(VMS)) <= site.vmms().keys() <= set(names(VMS + 4))
        assert set(site.boot_args().values()) <= {"first", "second"}
    for specs, (vms, boot_args) in wants.items():
        site.write(vms, boot_args, name=specs.stem)
        site.apply(specs)
        site.assert_as_wanted(vms, boot_args)


def test_two_beats_and_two_control_workers_do_everything_once(site: Site) -> None:
    specs = site.write(6)
    own = {"MIKROM_RECONCILE_INTERVAL": "1", "MIKROM_SPECS": str(specs)}
    site.control.terminate()
    site.control.wait()
    for name in ("one", "two"):
        site.control_worker(**own)
        site.fleet.run(f"beat-{name}", [sys.executable, "run_beat.py"], **own)
    wait_until(lambda: site.vmms().keys() == set(names(6)), "the first")
    site.write(6, "second")
    site.watch.wait_until(lambda watch: watch.started >= 12, "the second", within_s=60)
    time.sleep(3)  # some more ticks
    site.apply(specs)
    site.assert_as_wanted(6, "second")
    assert site.watch.started == 12


class Postman:
    """Takes what a control side sends, and delivers it later, twice and in no order."""

    def __init__(self, app: Any, seed: str) -> None:
        self.delivered: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.send = app.send_task
        self._bag: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._chance = Random(seed)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        app.send_task = self._take

    def _take(self, *args: Any, **kwargs: Any) -> None:
        with self._lock:
            self._bag += [(args, kwargs)] * 2
            self.delivered.append((args, kwargs))

    def deliver(self) -> None:
        while not self._ended.wait(0.05):
            with self._lock:
                bag, self._bag = self._bag, []
            self.deliver_all(bag)

    def deliver_all(self, bag: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> None:
        self._chance.shuffle(bag)
        for args, kwargs in bag:
            self.send(*args, **kwargs)

    def end(self) -> None:
        self._ended.set()


def test_where_every_message_comes_twice_and_out_of_order_everything_is_done_once(site: Site) -> None:
    settings = site.fleet.settings(**site.real)
    app = make_app(settings)
    postman = Postman(app, "twice")
    engine = wiring.make_reconciler(
        settings, CeleryHosts(app, site.fleet.redis), RedisStore(site.fleet.redis, prefix=KEYS.prefix)
    )

    def apply(vms: int, boot_args: str) -> RunReport:
        text = SPECS.format(vms=vms, boot_args=boot_args)
        tree = SourceTree(revision=boot_args, files=(SourceFile(path="specs.yml", text=text),))
        request = RunRequest(run_id=f"{vms}-{boot_args}", origin="a test", tree=tree, timeout_s=60)
        return engine.apply(request, None, progress=lambda _: None)

    with ThreadPoolExecutor() as pool:
        delivering = pool.submit(postman.deliver)
        try:
            for vms, boot_args in ((VMS, "first"), (VMS, "second"), (5, "second"), (VMS, "third")):
                report = apply(vms, boot_args)
                assert {outcome.result for outcome in report.outcomes} <= {"done", "already_done"}
                site.assert_as_wanted(vms, boot_args)
        finally:
            postman.end()
    delivering.result()
    assert site.watch.started == 3 * VMS
    before = site.watch.now()
    postman.deliver_all([*postman.delivered])  # all that was ever said, once more
    wait_until(lambda: not any(site.fleet.redis.llen(name) for name in KEYS.lists(KEYS.host_queue("localhost"))), "it")
    time.sleep(1)
    assert site.watch.now() == before
    site.assert_as_wanted(VMS, "third")
    app.close()

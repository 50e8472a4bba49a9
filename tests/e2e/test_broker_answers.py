"""Whatever a broker answers, or does not: workers outlive it, and the microVMs of a host are looked after meanwhile."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.dispatch.transport.order_envelope import given_up
from mikrom_reconcile.dispatch.transport.rpc import ReplySender, pack
from mikrom_reconcile.dispatch.transport.shared_state import Heartbeat
from mikrom_reconcile.times_and_sizes import BROKER
from tests import fakes
from tests.e2e.conftest import HOST, Site, end_of
from tests.fleet import KEYS, PASSWORD, Fleet, wait_until

pytestmark = [pytest.mark.kvm, pytest.mark.redis]

VMS = 2


def commands(fleet: Fleet) -> Callable[..., Any]:
    redis: Any = fleet.redis
    execute: Callable[..., Any] = redis.execute_command
    return execute


def cannot_save(fleet: Fleet) -> Callable[[], object]:
    in_the_way = fleet.folder / "dump.rdb" / "in-the-way"
    in_the_way.mkdir(parents=True)
    fleet.redis.config_set("save", "1 1")  # after any change, and heartbeats are changes
    wait_until(lambda: fleet.redis.info("persistence")["rdb_last_bgsave_status"] == "err", "a save that fails")
    return lambda: fleet.redis.config_set("save", "")


def replica_of_nobody(fleet: Fleet) -> Callable[[], object]:
    commands(fleet)("REPLICAOF", "127.0.0.1", "1")
    return lambda: commands(fleet)("REPLICAOF", "NO", "ONE")


def another_password(fleet: Fleet) -> Callable[[], object]:
    fleet.redis.config_set("requirepass", "another")
    commands(fleet)("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    return lambda: fleet.redis.config_set("requirepass", PASSWORD)


def no_permission(fleet: Fleet) -> Callable[[], object]:
    commands(fleet)("ACL", "SETUSER", "default", "-@write", "-@scripting")
    return lambda: commands(fleet)("ACL", "SETUSER", "default", "+@all")


def heartbeat_refused(fleet: Fleet, owner: str, since: int) -> bool:
    return "heartbeat of " in fleet.log(owner)[since:]


ANSWERS = (cannot_save, replica_of_nobody, another_password, no_permission)


def test_workers_outlive_a_broker_that_answers_and_refuses_and_killed_vms_come_back_meanwhile(site: Site) -> None:
    vms = len(ANSWERS) + 1
    specs = site.write(vms)
    site.apply(specs)
    before, logs = site.vmms(), (HOST, "control:localhost")
    for number, answers in enumerate(ANSWERS):
        said = {name: len(site.fleet.log(name)) for name in logs}
        mend = answers(site.fleet)
        for name in logs:
            wait_until(partial(heartbeat_refused, site.fleet, name, said[name]), f"a refused heartbeat of {name}")
        started = site.watch.started
        os.kill(before[f"web-{number:03d}"].pid, signal.SIGKILL)
        site.watch.wait_until(partial(lambda wanted, watch: watch.started == wanted, started + 1), "the VM to be back")
        mend()
        wait_until(lambda: end_of(site.begin(specs))[0] == 0, "an apply")
        site.assert_as_wanted(vms)
    assert site.vmms()["web-004"] == before["web-004"]
    assert [site.host.poll(), site.control.poll()] == [None, None]
    assert "Frequent restarts detected" not in "".join(map(site.fleet.log, logs))


def test_a_host_that_comes_up_without_its_broker_brings_its_vms_back_all_the_same(site: Site) -> None:
    specs = site.write(VMS)
    site.apply(specs)
    site.host.kill()
    site.host.wait()
    for vmm in site.watch.now():
        os.kill(vmm.pid, signal.SIGKILL)
    site.fleet.stop_redis()
    started = site.watch.started
    worker = site.fleet.run("host-localhost", [sys.executable, "run_worker.py"], **site.real)
    site.watch.wait_until(lambda watch: watch.started == started + VMS, "the VMs to be back")
    assert worker.poll() is None
    assert "no answer from the broker" in site.fleet.log(HOST)
    site.fleet.start_redis()
    site.fleet.wait_for(HOST, worker)
    wait_until(lambda: end_of(site.begin(specs))[0] == 0, "an apply")
    site.assert_as_wanted(VMS)


def test_a_worker_that_lost_its_connection_says_so_at_once_of_what_it_was_sent(fleet: Fleet, app: FleetApp) -> None:
    """What was on its way just then is lost, for all that anybody knows: nobody waits for it until a deadline."""
    fleet.worker("host", host=fakes.HOST, MIKROM_TEST_BOOT_S="60")
    orders = [fakes.order("create", "web-000", deadline_s=100)]
    with ThreadPoolExecutor() as pool:
        outcomes = pool.submit(list, CeleryHosts(app, fleet.redis).execute(orders, forks=1, deadline_s=100))
        wait_until((fleet.folder / "state" / "vms" / "web-000").exists, "the order to be under way")
        clients: Any = fleet.redis.client_list()
        for client in clients:
            if client["cmd"] == "brpop":
                commands(fleet)("CLIENT", "KILL", "ID", client["id"])
        (outcome,) = outcomes.result(timeout=240)
    assert outcome.result == "failed_temporary"
    assert outcome.error == "the host's worker died, was restarted or lost its broker"


def test_what_is_answered_is_heard_while_there_is_more_to_send(fleet: Fleet, app: FleetApp) -> None:
    """A call that is not read for fifteen seconds counts as dead, and to send to a thousand hosts takes longer."""
    owner, orders = (
        f"host:{fakes.HOST}",
        [fakes.order("create", f"web-{n}") for n in range(4 * BROKER.orders_between_reads)],
    )
    heartbeat, answers = Heartbeat(fleet.redis, KEYS, owner), ReplySender(fleet.redis, KEYS, owner)
    heartbeat.start()

    def answer_the_first() -> None:
        wait_until(lambda: bool(fleet.redis.keys(KEYS.call("*"))), "the call")
        calls: Any = fleet.redis.keys(KEYS.call("*"))
        answers.tell(calls[0].decode().rpartition(":")[2], "outcome", pack(given_up(orders[0], "done", "")))
        answers.flush()

    with ThreadPoolExecutor() as pool:
        answering = pool.submit(answer_the_first)
        outcome = next(CeleryHosts(app, fleet.redis).execute(orders, forks=len(orders), deadline_s=100))
        answering.result()
    heartbeat.leave()
    left = sum(fleet.redis.llen(name) for name in KEYS.lists(KEYS.host_queue(fakes.HOST)))
    assert (outcome.vm, outcome.result) == ("web-0", "done")
    assert 0 < left < len(orders)

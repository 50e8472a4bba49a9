"""A fleet in one process: hosts, controllers, a broker and people, under one clock, with the real code between them."""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from redis import RedisError

from mikrom_reconcile.control import reconcile
from mikrom_reconcile.control.reconcile import Reconciler
from mikrom_reconcile.control.stores import redis as redis_store
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import Capacity
from mikrom_reconcile.core.model.plan import BEAT, RunReport, RunRequest, VMChange
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from mikrom_reconcile.dispatch.transport import order_envelope, rpc, shared_state
from mikrom_reconcile.host import agent, observe, records, supervise
from mikrom_reconcile.host.orders import execute, preconditions
from mikrom_reconcile.system import files
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.wiring import schemas
from tests.simulation.broker import Broker
from tests.simulation.clockwork import Clockwork, InlinePool, Process, Threads
from tests.simulation.disk import disks_of
from tests.simulation.judge import Judge, Run
from tests.simulation.machine import ExitWatcher, Machine
from tests.simulation.specs import FLEETS, Wanted

ROOM = Capacity(vcpu_count=64, mem_size_mib=4096)


class Control:
    """A control worker with a Beat of its own. It sees specs as they were `behind_s` ago."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.clock, self.number = world, world.clock, number
        self.behind_s = 0.0
        self.process: Process

    def start(self) -> None:
        process = self.process = Process(f"control {self.number}")
        app = self.world.broker.app(process)
        self.reconciler = Reconciler(
            here="control",
            hosts=CeleryHosts(app, app.redis),
            store=RedisStore(app.redis, prefix=app.keys.prefix),
            clock=self.world.real_clock,
            schemas=schemas(),
        )
        self.clock.spawn(process.name, self._beat, process, self.clock.chance.uniform(1.0, 10.0))

    def kill(self) -> None:
        self.clock.kill(self.process)
        self.clock.at(self.clock.chance.uniform(1.0, 20.0), self.start)

    def _beat(self) -> None:
        while True:
            for project in ("shop", "bank"):
                self.run(project, BEAT, self.world.wanted_at(self.clock.now - self.behind_s))
            self.clock.pause(self.world.interval_s)

    def asked(self, project: str, wanted: Wanted, **options: Any) -> None:
        """A person asks for it, over this control worker."""
        act = lambda: self.run(project, "apply by ana", wanted, **options)  # noqa: E731
        self.clock.spawn("ana", act, self.process)

    def run(self, project: str, origin: str, wanted: Wanted, **options: Any) -> RunReport | None:
        """One run; None if it could not be."""
        world = self.world
        world.runs += 1
        run_id = f"run-{world.runs}"
        is_free = any(options.get(name) for name in ("confirmed", "prune_max", "destroy", "verb"))
        run = Run(project=project, wanted=wanted, is_free=is_free, is_retry=bool(options.get("retry")))
        world.judge.runs[run_id] = run
        request = RunRequest(
            run_id=run_id, origin=origin, tree=wanted.tree(project), timeout_s=120.0, forks=4, **options
        )
        world.under_way[run_id] = wanted
        try:
            plan = None if origin == BEAT else self.reconciler.plan(request)
            report = self.reconciler.apply(request, plan, progress=lambda _: None)
        except MikromError as error:
            self.clock.say(f"{run_id} of control {self.number}, {project}: {type(error).__name__} {error}")
            return None
        finally:
            del world.under_way[run_id]
        left = len(report.remaining.changes) if report.remaining else -1
        self.clock.say(f"{run_id} of control {self.number}, {project}: {len(report.outcomes)} done, {left} left")
        return report


class World:
    """Everything. `live` is its life: whatever happens in it happens inside of that block."""

    def __init__(self, seed: int, *, hosts: int, controls: int) -> None:
        self.clock = Clockwork(seed)
        chance = self.clock.chance
        self.fate = Random(seed)  # of the fault that happens now
        self.secret = f"hunter{chance.randrange(10**9)}"
        self.interval_s = chance.choice([10.0, 30.0])
        self.rescan_s = chance.choice([5.0, 20.0])
        self.real_clock = _RealClock(self.clock)
        self.broker = Broker(self.clock)
        self.doubled = self.broker.doubled = chance.choice([0.0, 0.5])  # some brokers deliver twice all the time
        self.judge = Judge(self)
        self.broker.written, self.broker.sent = self.judge.is_written, self.judge.sent
        self.machines = {f"hv{number}": Machine(self, f"hv{number}", number) for number in range(1, hosts + 1)}
        self.controls = [Control(self, number) for number in range(controls)]
        self.given_up: set[str] = set()
        self.runs = 0
        self.is_settling = False
        self.under_way: dict[str, Wanted] = {}
        self._wanted = [(0.0, Wanted(hosts=tuple((name, "") for name in self.machines)))]

    @property
    def wanted(self) -> Wanted:
        return self._wanted[-1][1]

    def wanted_at(self, at: float) -> Wanted:
        return next((wanted for since, wanted in reversed(self._wanted) if since <= at), self._wanted[0][1])

    def change(self, **fields: Any) -> None:
        if self.is_settling:
            return
        self._wanted.append((self.clock.now, replace(self.wanted, **fields)))
        self.clock.say(f"wanted: {fields}")

    def begin(self) -> None:
        for machine in self.machines.values():
            machine.boot()
        for control in self.controls:
            control.start()

    def settle(self) -> None:
        """No more faults: all is to become as it is wanted, and from then on nothing is sent."""
        self._heal()
        self.clock.run(until_s=self.clock.now + 3 * self.interval_s)
        self.judge.nobody_hangs()
        failures: list[str] = []
        clock, control = self.clock, self.controls[0]
        done: list[bool] = []

        def people() -> None:
            while any(wanted != self.wanted for wanted in self.under_way.values()):
                clock.pause(5.0)
            for _ in range(40):
                clock.pause(15.0)
                everything: dict[str, Any] = {"retry": True, "prune_max": "100%", "confirmed": FLEETS}
                reports = [control.run(p, "apply by ana", self.wanted, **everything) for p in ("bank", "shop")]
                remaining = [report.remaining for report in reports if report]
                changes = (change for plan in remaining if plan for change in plan.changes if not _is_kept(change))
                failures[:] = [f"{each.name} {each.kind}: {each.reasons}" for each in changes]
                if not failures and len([plan for plan in remaining if plan]) == 2:
                    break
            done.append(True)

        clock.spawn("ana", people, control.process)
        while not done:
            clock.run(steps=1000)
        if failures:
            self.judge.broken("G2", "; ".join(failures))
        self.judge.all_is_as_wanted(self.wanted)
        sent = self.judge.orders_sent
        clock.run(until_s=clock.now + 3 * self.interval_s)
        if self.judge.orders_sent != sent:
            self.judge.broken("G2", "all was as specified, and still orders were sent")

    def _heal(self) -> None:
        self.broker.is_silent = False
        self.broker.lost = self.broker.doubled = self.broker.late = 0.0
        hosts = tuple((name, "") for name in self.machines)
        self.change(hosts=hosts, args="good", has_db=True, has_claim=False)
        self.is_settling = True
        for control in self.controls:
            control.behind_s = control.process.cut_until = control.process.frozen_until = 0.0
            if not control.process.alive:
                control.start()
        for machine in self.machines.values():
            machine.lacks_memory_until = machine.cut_until = machine.clock_off_s = 0.0
            machine.disk.is_full = False
            if machine.worker:
                machine.worker.dies_at, machine.worker.frozen_until = None, 0.0
            if not machine.is_on:
                machine.boot()
        self.clock.run(until_s=self.clock.now + 30.0)

    @contextmanager
    def live(self) -> Iterator[None]:
        with ExitStack() as stack:
            for target, name, stand_in in self._stand_ins():
                stack.enter_context(patch.object(target, name, stand_in))
            stack.enter_context(disks_of(lambda host: self.machines[host].disk, self._process))
            stack.enter_context(patch.object(files, "sync", lambda fd: os.fsync(fd)))  # noqa: PLW0108 - that of now
            stack.enter_context(self._listening())
            try:
                yield
            finally:
                self.clock.end()

    def _process(self) -> Process | None:
        return self.clock.current.process if self.clock.current else None

    def _stand_ins(self) -> Iterator[tuple[Any, str, Any]]:
        clock, chance, threads = self.clock, self.clock.chance, Threads(self.clock)
        for name in ("time", "monotonic", "clock_gettime", "sleep"):
            yield time, name, getattr(clock, name)
        for module in (supervise, shared_state, rpc, redis_store, execute, preconditions):
            yield module, "threading", threads
        yield supervise, "ThreadPoolExecutor", threads.Pool
        yield supervise, "ExitWatcher", lambda: ExitWatcher(clock)
        yield supervise, "allow_descriptors", lambda: None
        yield observe, "ThreadPoolExecutor", InlinePool
        yield agent, "ThreadPoolExecutor", InlinePool
        yield agent, "GarbageCollector", lambda *_: SimpleNamespace(run=lambda: None)
        yield observe, "capacity", lambda: ROOM
        yield execute, "capacity", lambda: ROOM
        yield observe, "used_mib", lambda: 0
        yield order_envelope, "datetime", SimpleNamespace(now=clock.utc)
        for module in (shared_state, records):
            yield module, "boot_id", lambda: f"boot-{self._here().boots}"
        yield shared_state, "machine_id", lambda _: f"machine-{self._here().name}"
        yield reconcile, "validate_specs", _validated
        yield secrets, "token_hex", lambda size: f"{chance.getrandbits(8 * size):0{2 * size}x}"
        yield secrets, "randbelow", chance.randrange
        yield random, "uniform", chance.uniform
        yield socket, "gethostname", lambda: "node"
        yield os, "getpid", lambda: 4711
        yield os, "kill", lambda *_: self._end_of_worker()

    def _here(self) -> Machine:
        process = self._process()
        assert process is not None
        return cast("Machine", process.machine)

    def _end_of_worker(self) -> None:
        self._here().kill_worker()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        log, judge = logging.getLogger("mikrom_reconcile"), self.judge

        class Ear(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                judge.is_written(record.getMessage().encode())
                if record.exc_info and not isinstance(record.exc_info[1], RedisError):
                    judge.broken("bug", f"{record.getMessage()}: {traceback.format_exception(record.exc_info[1])}")

        ear, before = Ear(), log.propagate
        log.addHandler(ear)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(ear)
            log.propagate = before


class _RealClock(Clock):
    """The code's own clock, on what stands for the system's."""

    def __init__(self, clock: Clockwork) -> None:
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.utc()


def _is_kept(change: VMChange) -> bool:
    """The older copy of a protected VM, on a host that was given up and is back: a person's, not a run's."""
    return change.fleet == "db" and change.kind == "blocked"


def _validated(tree: Any, kinds: Any, *, here: str, extra_vars: Any) -> Any:
    """Specs are pure, and the same ones are read often."""
    return _read_once(tree, here)


@cache
def _read_once(tree: Any, here: str) -> Any:
    return validate_specs(tree, schemas(), here=here, extra_vars={})

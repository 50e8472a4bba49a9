"""What a change would do, in virtual time: real runs and hosts, in a folder of their own, whose VMs only pretend."""

import heapq
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Literal

import msgspec

from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.errors import TemporaryError
from mikrom_reconcile.core.model.observed import HAS_VMM, Applied, Capacity, HostView, ObserveQuery, VMMFacts
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, Plan, RunRequest
from mikrom_reconcile.dispatch.hosts.local import LocalHosts
from mikrom_reconcile.dispatch.transport.order_envelope import given_up
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.output.timeline import Happening, Rehearsal
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.times_and_sizes import REHEARSAL

Fault = Literal["hosts", "starts"]


class VirtualClock(Clock):
    """Waits by going on to then. `began_at` is when the action that ends now was begun."""

    def __init__(self) -> None:
        self._since, self.at_s, self.began_at = super().now(), 0.0, 0.0

    def now(self) -> datetime:
        return self._since + timedelta(seconds=self.at_s)

    def monotonic(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        self.at_s += seconds


class RehearsedDriver(SimulatedDriver):
    """VMs of one host in memory: `up` has those that run, and since when. `told` hears of each."""

    def __init__(self, host: str, clock: VirtualClock, told: list[Happening], fails: Random | None) -> None:
        super().__init__(Path(os.devnull))
        self.up: dict[str, float] = {}
        self._host, self._clock, self._told, self._fails = host, clock, told, fails

    def observe(self, record: VMRecord) -> VMMFacts:
        if (since_s := self.up.get(record.vm)) is None:
            return VMMFacts(status="none", end="suspended" if record.state == "suspended" else "clean")
        status: Literal["running", "paused"] = "paused" if record.state == "paused" else "running"
        return VMMFacts(status=status, pid=1, age_s=self._clock.at_s - since_s)

    def start(self, record: VMRecord, *, deadline_s: float) -> str:  # noqa: ARG002 - the port's
        """It runs by now."""
        if self._fails is not None and self._fails.random() < REHEARSAL.failing_starts:
            raise TemporaryError("a fault that was asked for", vm=record.vm, step="starting")
        if record.vm not in self.up:
            self.up[record.vm] = self._clock.at_s
            self.tell(record.vm, record.fleet, "up", self._clock.at_s)
        return ""

    def set_paused(self, record: VMRecord, *, paused: bool, deadline_s: float) -> None:
        """Nothing: its record says so."""

    def suspend(self, record: VMRecord, *, deadline_s: float) -> None:
        """Nothing: as above."""

    def stop(self, record: VMRecord, *, grace_s: float) -> None:  # noqa: ARG002 - the port's
        """It has been down since the action began."""
        if self.up.pop(record.vm, None) is not None:
            self.tell(record.vm, record.fleet, "down", self._clock.began_at)

    def delete(self, record: VMRecord) -> None:
        """It is gone."""
        self.tell(record.vm, record.fleet, "gone", self._clock.at_s)

    def tell(self, vm: str, fleet: str, what: Literal["up", "down", "gone"], at_s: float) -> None:
        """Note what happens to a VM."""
        self._told.append(Happening(at_s=at_s, host=self._host, vm=vm, fleet=fleet, what=what))


class RehearsedHosts(LocalHosts):
    """Hosts whose actions take virtual time, so many at once; those of `dark` are silent from one time to another."""

    def __init__(
        self, folder: Path, views: Mapping[str, HostView], *, boot_s: float, chance: Random, faults: Iterable[Fault]
    ) -> None:
        self.clock, self.told = VirtualClock(), list[Happening]()
        self._boot_s, self._chance = boot_s, chance
        fails = chance if "starts" in faults else None
        self.dark: dict[str, tuple[float, float]] = {}
        self._drivers = {host: RehearsedDriver(host, self.clock, self.told, fails) for host in views}
        self._capacity = {host: view.report.capacity if view.report else _PLENTY for host, view in views.items()}
        self._agents = {host: self._agent_of(folder / host, view) for host, view in views.items()}
        super().__init__(next(iter(self._agents.values())))
        for host in views if "hosts" in faults else ():
            begin_s = chance.uniform(0, REHEARSAL.faults_s)
            self.dark[host] = begin_s, begin_s + chance.uniform(0, REHEARSAL.faults_s)

    def _agent_of(self, folder: Path, view: HostView) -> HostAgent:
        records, driver = Records(folder), self._drivers[view.host]
        for row in view.report.vms if view.report else ():
            applied = {name: getattr(row, name) for name in Applied.__struct_fields__}
            records.write(VMRecord(vm=row.name, action_id="", crash_loop=row.phase == "crash_loop", **applied))
            if row.phase in HAS_VMM:
                driver.up[row.name] = -REHEARSAL.up_before_s
                driver.tell(row.name, row.fleet, "up", 0.0)
        return HostAgent(view.host, driver=driver, records=records, clock=self.clock)

    def is_dark(self, host: str) -> bool:
        """Whether it is silent now."""
        begin_s, end_s = self.dark.get(host, (0.0, 0.0))
        return begin_s <= self.clock.at_s < end_s

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        return tuple(host for host in sorted(self._agents) if unreachable or not self.is_dark(host))

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:  # noqa: ARG002
        for host, query in queries.items():
            if host not in self._agents or self.is_dark(host):
                yield HostView(host=host, error="is dark in this rehearsal")
                continue
            report = self._agents[host].observe(query)
            yield HostView(host=host, report=msgspec.structs.replace(report, capacity=self._capacity[host]))

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:  # noqa: ARG002
        slots: dict[str, list[float]] = {}
        timed = []
        for number, order in enumerate(orders):
            free = slots.setdefault(order.action.host, [self.clock.at_s] * forks)
            begins_s = heapq.heappop(free)
            ends_s = begins_s + (0.0 if order.action.verb in {"update", "delete"} else self._boot_s)
            heapq.heappush(free, ends_s)
            timed.append((ends_s, number, begins_s, order))
        for ends_s, _, begins_s, order in sorted(timed, key=lambda each: each[:2]):
            self.clock.at_s, self.clock.began_at = max(self.clock.at_s, ends_s), begins_s
            if self.is_dark(order.action.host):
                yield given_up(order, "failed_temporary", "its host went dark in this rehearsal")
            else:
                yield self._agents[order.action.host].execute(order)


_PLENTY = Capacity(vcpu_count=1 << 20, mem_size_mib=1 << 30)  # of a host of which nothing is known


def rehearse(request: RunRequest, engine: Engine, hosts: RehearsedHosts) -> Rehearsal:
    """Runs, as Beat would have them, until all is as specified, or nothing is done any more. Raises SpecError."""
    logging.getLogger("mikrom_reconcile.host").addHandler(logging.NullHandler())  # what fails is in the outcomes
    clock = hosts.clock
    left: Plan | None = None
    faults_end_s = max((end_s for _, end_s in hosts.dark.values()), default=0.0)
    actions, idle, runs, done_at_s = 0, 0, 0, 0.0
    while runs < REHEARSAL.runs and idle < REHEARSAL.idle_runs:
        runs += 1
        run = msgspec.structs.replace(request, run_id=f"{request.run_id}-{runs}")
        report = engine.apply(run, None, progress=lambda _: None)
        actions, left = actions + len(report.outcomes), report.remaining
        done_at_s = clock.at_s if report.outcomes else done_at_s
        if left is not None and not left.changes and clock.at_s >= faults_end_s:
            break
        idle = idle + 1 if not report.outcomes and clock.at_s >= faults_end_s else 0
        clock.sleep(REHEARSAL.interval_s)
    changes = left.changes if left else ()
    return Rehearsal(
        took_s=done_at_s,
        runs=runs,
        actions=actions,
        happenings=tuple(sorted(hosts.told, key=lambda each: each.at_s)),
        left=tuple(f"{change.name}: {change.kind}, {'; '.join(change.reasons)}" for change in changes),
    )

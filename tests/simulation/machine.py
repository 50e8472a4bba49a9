"""Simulated hosts: a disk, VMMs as processes, a clock that may jump, and the real host worker over them."""

from __future__ import annotations

import json
from collections.abc import Container
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from celery.exceptions import Retry
from redis import RedisError

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.errors import MikromError, PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import Console, End, Stray, VMMFacts
from mikrom_reconcile.core.model.plan import ActionOutcome
from mikrom_reconcile.dispatch.host_worker.tasks import HostTasks
from mikrom_reconcile.dispatch.transport.rpc import ReplySender
from mikrom_reconcile.dispatch.transport.shared_state import Heartbeat
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.drivers.simulated import drift_of
from mikrom_reconcile.host.ports import Driver, VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.provisioner import Secrets
from mikrom_reconcile.system import files, locks
from tests.simulation.broker import Task
from tests.simulation.clockwork import Actor, Clockwork, Killed, Process
from tests.simulation.disk import Disk

if TYPE_CHECKING:
    from tests.simulation.world import World

FIRST_PIDFD = 1 << 24
BAD = "panic"
"""A word in the boot arguments with which no guest comes up."""


class VMM:
    """One VMM process. `order` is the one under which it was started; None for the supervision's."""

    def __init__(self, pid: int, record: VMRecord, order: dict[str, Any] | None, now: float) -> None:
        self.pid = pid
        self.vm, self.uid, self.project, self.fleet = record.vm, record.uid, record.project, record.fleet
        self.machine, self.boot_args = record.spec.machine, record.spec.boot_args
        self.addresses = {
            (nic.cidr, record.addresses[name])
            for name, nic in record.spec.network_interfaces.items()
            if name in record.addresses
        }
        self.order = order
        self.started_at = now
        self.status = "starting"
        self.is_hung = False
        self.watchers: list[tuple[ExitWatcher, str]] = []


class Machine:
    """A host. `is_on` is its power; its worker may be down, cut off or frozen for all that."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world, self.name, self.clock = world, name, world.clock
        self.disk = Disk(number, now=self.clock.time, call=self.call, seen=self._seen)
        self.state_dir = Path(f"/sim/{name}/state")
        self.is_on = False
        self.clock_off_s, self.booted_at, self.boots = 0.0, 0.0, 0
        self.lacks_memory_until = self.cut_until = 0.0
        self.edited: set[str] = set()
        self.vmms: dict[str, VMM] = {}
        self.ends: dict[tuple[str, str], End] = {}
        self.pidfds: dict[int, VMM] = {}
        self.worker: Process | None = None
        self._pids = number * 100_000

    # ---- what happens to it ----------------------------------------------------------------------------------------

    def boot(self) -> None:
        self.is_on, self.booted_at, self.boots = True, self.clock.now, self.boots + 1
        self.start_worker(0.5)

    def start_worker(self, after_s: float) -> None:
        """Its service manager starts the worker, whenever it is not there."""
        if self.is_on and (self.worker is None or not self.worker.alive):
            worker = self.worker = Process(f"worker of {self.name}", self)
            self.clock.spawn(worker.name, lambda: self._work(worker), worker, after_s)

    def is_dark(self) -> bool:
        """Nobody can read it now."""
        worker, now = self.worker, self.clock.now
        return not self.is_on or now < self.cut_until or not worker or not worker.alive or worker.frozen_until > now

    def kill_worker(self) -> None:
        if self.worker is not None:
            self.clock.kill(self.worker)
            self.clock.at(2.0, lambda: self.start_worker(0.0))

    def power_off(self) -> None:
        self.is_on = False
        if self.worker is not None:
            self.clock.kill(self.worker)
        for vmm in list(self.vmms.values()):
            self.end(vmm, "rebooted", "power")
        if not self.edited:  # what somebody has edited has one copy left
            self.disk.power_fails(self.clock.chance)
        self.world.judge.disk_was_lost(self)

    def end(self, vmm: VMM, end: End, why: str) -> None:
        """A VMM's process is gone, at once."""
        if self.vmms.get(vmm.vm) is vmm:
            del self.vmms[vmm.vm]
            self.ends[vmm.vm, vmm.uid] = end
            self.clock.say(f"{self.name}: VMM of {vmm.vm} ended, {end}, {why}")
            for watcher, name in vmm.watchers:
                watcher.ended(name, vmm)

    def spawn(self, record: VMRecord) -> VMM:
        self._pids += 1
        vmm = VMM(self._pids, record, self.clock.living().order, self.clock.now)
        assert record.vm not in self.vmms, "the kernel's lock of a VM"
        self.vmms[record.vm] = vmm
        self.clock.say(f"{self.name}: VMM of {record.vm} started")
        self.world.judge.started(self, vmm)
        return vmm

    def call(self, what: str) -> None:
        """A system call that changes something: a moment at which its process may die, and at which others go on."""
        actor = self.clock.current
        if actor is None:
            return
        self.clock.living()
        process = actor.process
        process.calls += 1
        if process.dies_at is not None and process.calls >= process.dies_at:
            self.clock.say(f"{self.name}: {'power failed' if process.power_fails else 'worker killed'} before {what}")
            if process.power_fails:
                self.power_off()
                self.clock.at(5.0, self.boot)
            else:
                self.kill_worker()
            raise Killed
        self.clock.pause()

    def _seen(self, what: str, path: str, content: bytes) -> None:
        self.world.judge.file_changed(self, what, path.removeprefix(str(self.state_dir)), content)

    # ---- its worker, as `dispatch/process.py` begins it -------------------------------------------------------------

    def _work(self, worker: Process) -> None:
        redis, keys, owner = cast("Any", self.world.broker.client(worker)), self.world.broker.keys, f"host:{self.name}"
        try:
            files.make_folder(self.state_dir)
            agent = HostAgent(
                self.name, driver=Driven(self), records=Records(self.state_dir), clock=self.world.real_clock
            )
            assert locks.open_taken(self.state_dir / "locks" / "worker") is not None, "two workers of one host"
            heartbeat = Heartbeat(redis, keys, owner, state_dir=self.state_dir, fence=agent.stop_all)
            heartbeat.refuse_a_second()
        except (MikromError, OSError) as error:  # its service manager tries again
            self.clock.say(f"{worker.name}: {error}")
            self.kill_worker()
            return
        replies = ReplySender(redis, keys, owner)
        replies.start()
        agent.supervise(rescan_s=self.world.rescan_s, on_outcome=self._supervised)
        heartbeat.start()
        self._consume(worker, HostTasks(self.name, keys.host_queue(self.name), lambda: agent, replies), heartbeat)

    def _consume(self, worker: Process, tasks: HostTasks, heartbeat: Heartbeat) -> None:
        is_connected = True
        while True:
            try:
                _, task, arguments, tried = self.world.broker.fetch(worker, tasks.queue)
            except RedisError:
                is_connected = False
                continue
            if not is_connected:
                heartbeat.begin_anew()
                is_connected = True
            self.clock.spawn(task, lambda t=task, a=arguments, n=tried: self._task(tasks, t, a, n), worker)  # type: ignore[misc]

    def _task(self, tasks: HostTasks, name: str, arguments: dict[str, Any], tried: int) -> None:
        actor = self.clock.living()
        if name == "mikrom.observe_host":
            tasks.observe_host(**arguments)
            return
        verb: Any = name.removeprefix("mikrom.").removesuffix("_vm")
        actor.order = json.loads(arguments["order"])
        try:
            told = tasks.carry_out(Task(self.world.broker, tasks.queue, name, tried), verb, arguments)
        except Retry:
            return
        self.clock.say(f"{self.name}: {verb} {told['vm']}: {told['result']} {told['error'] or ''}")
        if "a mistake in mikrom" in (told["error"] or ""):
            self.world.judge.broken("bug", told["error"])
        self.world.judge.carried_out(self, actor.order, told["result"])

    def _supervised(self, project: str, outcome: ActionOutcome) -> None:
        self.clock.say(f"{self.name}: supervision, {project}/{outcome.vm}: {outcome.result}")


class Driven(Driver):
    """The driver of simulated VMMs."""

    name = "simulation"

    def __init__(self, machine: Machine) -> None:
        self._machine, self._clock = machine, machine.clock
        self._secrets = Secrets(names=("PASSWORD",), environ={"PASSWORD": machine.world.secret})

    def memory_mib(self, spec: VMSpec) -> int:
        return spec.machine.mem_size_mib

    def unsupported(self, spec: VMSpec) -> str | None:
        return None

    def observe(self, record: VMRecord) -> VMMFacts:
        self._clock.living()
        vmm = self._machine.vmms.get(record.vm)
        if vmm is None:
            return VMMFacts(status="none", end=self._machine.ends.get((record.vm, record.uid), "unknown"))
        age_s = self._clock.now - vmm.started_at
        if vmm.is_hung:
            return VMMFacts(status="unresponsive", pid=vmm.pid, age_s=age_s)
        if vmm.status == "starting":
            return VMMFacts(status="starting", pid=vmm.pid, age_s=age_s)
        status: Any = vmm.status
        drift = drift_of(record.spec, vmm.machine, vmm.boot_args)
        return VMMFacts(status=status, pid=vmm.pid, age_s=age_s, drift=drift)

    def watch(self, record: VMRecord) -> int | None:
        self._clock.living()
        vmm = self._machine.vmms.get(record.vm)
        if vmm is None:
            return None
        pidfd = FIRST_PIDFD + vmm.pid
        self._machine.pidfds[pidfd] = vmm
        return pidfd

    def start(self, record: VMRecord, *, deadline_s: float) -> str:
        there = self._machine.vmms.get(record.vm)
        if there is not None and there.status in {"running", "paused"} and not there.is_hung:
            return ""
        if there is not None:
            self._kill(there, record)
        if self._clock.now < self._machine.lacks_memory_until:
            raise TemporaryError("cannot allocate memory", vm=record.vm, step="starting its VMM")
        self._secrets.resolved(record.spec.mmds or {})
        self._machine.call(f"make drives of {record.vm}")
        for name in record.spec.drives:
            self._make_drive(record.vm, name)
        self._machine.call(f"spawn VMM of {record.vm}")
        vmm = self._machine.spawn(record)
        self._machine.call(f"configure VMM of {record.vm}")
        self._clock.pause(self._clock.chance.uniform(0.01, 0.2))
        if BAD in record.spec.boot_args:
            self._machine.end(vmm, "crashed", "panic")
            raise PermanentError("its guest panicked", vm=record.vm, step="booting its guest")
        if self._machine.vmms.get(record.vm) is not vmm:
            raise TemporaryError("its VMM died", vm=record.vm, step="booting its guest")
        vmm.status = "running"
        self._machine.world.judge.runs_now(vmm)
        return ""

    def _make_drive(self, vm: str, name: str) -> None:
        path = self._machine.state_dir / "drives" / vm / name
        if not path.exists():
            files.make_folder(path.parent)
            files.write_whole(path, f"data of {vm}".encode())
            files.sync_folder(path.parent.parent)
            files.sync_folder(path.parent)

    def set_paused(self, record: VMRecord, *, paused: bool, deadline_s: float) -> None:
        self._machine.call(f"{'pause' if paused else 'resume'} {record.vm}")
        vmm = self._machine.vmms.get(record.vm)
        if vmm is None or vmm.is_hung:
            raise TemporaryError("no VMM of it answers", vm=record.vm, step="pausing its guest")
        vmm.status = "paused" if paused else "running"

    def suspend(self, record: VMRecord, *, deadline_s: float) -> None:
        """It never is asked to."""

    def update(self, record: VMRecord, *, deadline_s: float) -> None:
        """Nothing that it has changes live."""

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        vmm = self._machine.vmms.get(record.vm)
        if vmm is None:
            return
        self._machine.world.judge.is_stopped(self._machine, vmm, record, self._clock.living().order)
        if grace_s > 0 and not vmm.is_hung:
            self._machine.call(f"ask {record.vm} to leave")
            self._clock.pause(self._clock.chance.uniform(0.01, 0.5))
            self._machine.end(vmm, "clean", "asked to")
        self._kill(vmm, record)

    def _kill(self, vmm: VMM, record: VMRecord) -> None:
        self._machine.call(f"kill VMM of {record.vm}")
        self._machine.end(vmm, "killed", "stopped")

    def delete(self, record: VMRecord) -> None:
        self.stop(record, grace_s=0)
        for name, drive in record.spec.drives.items():
            if drive.on_delete == "delete":
                (self._machine.state_dir / "drives" / record.vm / name).unlink(missing_ok=True)

    def strays(self, known: Container[str]) -> tuple[Stray, ...]:
        return tuple(Stray(vm=vm, pid=vmm.pid) for vm, vmm in self._machine.vmms.items() if vm not in known)

    def trim(self) -> None:
        """Nothing is written to a console."""

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        return Console()


class ExitWatcher:
    """What stands for `system.processes.ExitWatcher`, on the VMMs of the machine whose worker makes it."""

    def __init__(self, clock: Clockwork) -> None:
        self._clock = clock
        self._machine: Machine = clock.living().process.machine
        self._awaited: dict[str, VMM] = {}
        self._ended: list[str] = []
        self._waiting: Actor | None = None
        self._is_woken = False

    def __contains__(self, name: str) -> bool:
        return name in self._awaited

    def add(self, name: str, pidfd: int) -> None:
        vmm = self._machine.pidfds.pop(pidfd)
        self._awaited[name] = vmm
        vmm.watchers.append((self, name))
        if self._machine.vmms.get(vmm.vm) is not vmm:
            self.ended(name, vmm)

    def remove(self, name: str) -> None:
        self._awaited.pop(name, None)

    def ended(self, name: str, vmm: VMM) -> None:
        if self._awaited.get(name) is vmm:
            self._ended.append(name)
            self.wake()

    def wait(self, timeout_s: float) -> tuple[str, ...]:
        if not self._is_woken:
            self._waiting = self._clock.living()
            self._clock.park(ceil(timeout_s * 1000) / 1000)  # as poll has it: less is lost in rounding, and time stands
        else:
            self._clock.pause()
        self._is_woken, self._waiting = False, None
        ended, self._ended = tuple(self._ended), []
        for name in ended:
            self._awaited.pop(name, None)
        return ended

    def wake(self) -> None:
        self._is_woken = True
        if self._waiting is not None:
            self._clock.wake(self._waiting)

    def close(self) -> None:
        self._awaited.clear()

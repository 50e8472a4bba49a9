"""What drivers share whose VMMs are processes: `firecracker.py` and `qemu.py` say what is their VMM's own.

`vmm.py` says how a VMM is found, proven and ended, and `vmm_start.py` in which order one is brought up.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.core.model.errors import ActionError, PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import Console, Drift, End, Stray, VMMFacts, VMMStatus
from mikrom_reconcile.host.drivers import jail, vmm
from mikrom_reconcile.host.drivers.earlier import EarlierVMMs
from mikrom_reconcile.host.drivers.translate_errors import FaultError, NoAnswerError, UnreachableError, step
from mikrom_reconcile.host.drivers.vmm import Layout, Places, Proc
from mikrom_reconcile.host.drivers.vmm_start import Command, abandon, last_words_of, spawn
from mikrom_reconcile.host.ports import LinkDrift, VMRecord
from mikrom_reconcile.host.resources.networks import Interface, boot_args_of
from mikrom_reconcile.host.resources.provisioner import ResourceProvisioner, VMResources
from mikrom_reconcile.limits import VMMS
from mikrom_reconcile.system import locks, processes
from mikrom_reconcile.system.free_head import keep_tail
from mikrom_reconcile.system.tails import part

PATIENCE = (0.1, 1.9)
"""A VMM counts as unresponsive when it has not answered in these shares of `answer_s`: the first soon finds one whose
guest has ended."""

_BOOTED = frozenset({"running", "paused"})


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a VMM says of itself. "unresponsive" stands for a state that no VMM in order has.

    `disks` maps the name of each disk that it has open to the path under which it opened it, `interfaces`
    the name of each interface to what it has there.
    """

    status: VMMStatus
    machine: Machine | None = None
    boot_args: str | None = None
    disks: dict[str, str] | None = None
    interfaces: dict[str, Interface] | None = None
    metadata: dict[str, Any] | None = None


class VMMDriver(ABC):
    """The driver of one kind of VMM. `answer_s` is how long it waits for a VMM that should answer at once."""

    name: str

    def __init__(
        self,
        binary: Path,
        *,
        state_dir: Path,
        run_dir: Path,
        provisioner: ResourceProvisioner | None = None,
        answer_s: float = VMMS.answer_s,
    ) -> None:
        self._binary = binary
        self._layout = Layout(state_dir, run_dir)
        self._earlier = EarlierVMMs(state_dir.resolve(), run_dir)
        self._provisioner = provisioner or ResourceProvisioner(state_dir)
        self._answer_s = answer_s

    # ---- what is each VMM's own -------------------------------------------------------------------------------

    @abstractmethod
    def memory_mib(self, spec: VMSpec) -> int:
        """What its VMM may take of this host's memory."""

    @abstractmethod
    def _unsupported(self, spec: VMSpec) -> str | None:
        """Why this VMM cannot run `spec`."""

    @abstractmethod
    def _kernel_problem(self, kernel: Path) -> str | None:
        """Why this VMM cannot boot a kernel, None if nothing speaks against it. Raises OSError."""

    @abstractmethod
    def _is_one(self, name: str, argv: list[str]) -> str | None:
        """The VM's name ("" if it has none) in the command line of a VMM of this kind; None: it is none."""

    @abstractmethod
    def _command(self, record: VMRecord, places: Places, media: VMResources) -> Command:
        """How it is started, so that it waits with its guest for `_boot`."""

    @abstractmethod
    def _boot(self, record: VMRecord, places: Places, proc: Proc, media: VMResources, *, give_up_at: float) -> None:
        """Configure it and let its guest run."""

    @abstractmethod
    def _answer(self, record: VMRecord, places: Places, found: processes.Identity, timeout_s: float) -> Answer:
        """What it says of itself. Raises UnreachableError, NoAnswerError, OSError."""

    @abstractmethod
    def _set_paused(self, places: Places, found: processes.Identity, timeout_s: float, *, paused: bool) -> None:
        """Let its vCPUs stand still or go on. Raises FaultError, UnreachableError, NoAnswerError, OSError."""

    @abstractmethod
    def _update(self, record: VMRecord, places: Places, found: processes.Identity, timeout_s: float) -> None:
        """Bring a VMM to its record in what changes while it runs. Raises as `_set_paused` does."""

    @abstractmethod
    def _ask_to_leave(self, places: Places, found: processes.Identity, timeout_s: float) -> None:
        """Ask its guest to shut down, one that is paused too. Raises as `_set_paused` does."""

    @abstractmethod
    def _end_of(self, places: Places) -> End:
        """How its process, which was this boot's, ended. Raises OSError."""

    # ---- what is the same for all -----------------------------------------------------------------------------

    def unsupported(self, spec: VMSpec) -> str | None:
        """Why this VMM cannot run `spec`, or nothing may be started here. Raises an ActionError of no VM."""
        with step("", "looking for VMMs of an earlier state folder"):
            return self._unsupported(spec) or self._earlier.why_not()

    def observe(self, record: VMRecord) -> VMMFacts:
        """What is provably there. Raises an ActionError if this *process* cannot look; that says nothing of the VM."""
        places = self._layout.of(record.vm)
        with step(record.vm, "observing it"):
            found = self._find(places)
            if found is not None and (facts := self._ask(record, places, found)) is not None:
                return facts
            processes.reap()
            if vmm.is_being_spawned(places):
                return VMMFacts(status="starting")
            return VMMFacts(status="none", end=self._last_end(places))

    def links(self, but: str = "") -> LinkDrift:
        """Compares taps, bridges and rules with records."""
        drift_of = self._provisioner.networks.drift(but)

        def drift(record: VMRecord) -> tuple[Drift, ...]:
            with step(record.vm, "looking at its links"):
                return drift_of(record)

        return drift

    def watch(self, record: VMRecord) -> int | None:
        """A pidfd of the proven VMM."""
        with step(record.vm, "opening a pidfd of its VMM"):
            found = self._find(self._layout.of(record.vm))
            return None if found is None else processes.open_pidfd(found)

    def start(self, record: VMRecord, *, deadline_s: float) -> None:
        """Spawn, write down, configure, boot."""
        give_up_at = time.monotonic() + deadline_s
        places = self._layout.of(record.vm)
        self._check(record, places)
        self._earlier.remember()
        if self._runs_already(record, places):
            return
        self._end(places, grace_s=0, give_up_at=give_up_at)
        with step(record.vm, "making its kernel, disks and links ready"):
            media = self._provisioner.prepare(record, give_up_at=give_up_at)
            if problem := self._kernel_problem(media.kernel):
                raise PermanentError(problem, vm=record.vm, step="looking at its kernel")
        with step(record.vm, "preparing its start"):
            command = self._command(record, places, media)
        proc = spawn(command, record, places)
        try:
            with last_words_of(command.program, places, proc):
                self._boot(record, places, proc, media, give_up_at=give_up_at)
        except BaseException:
            abandon(places, proc)
            raise

    def pause(self, record: VMRecord, *, deadline_s: float) -> None:
        """The guest's clock stands still, too, and goes on from there."""
        self._find_and_set_paused(record, "pausing its guest", deadline_s, paused=True)

    def resume(self, record: VMRecord, *, deadline_s: float) -> None:
        """The vCPUs go on."""
        self._find_and_set_paused(record, "resuming its guest", deadline_s, paused=False)

    def update(self, record: VMRecord, *, deadline_s: float) -> None:
        """Change what can be changed while the guest runs."""
        places = self._layout.of(record.vm)
        doing = "changing it while it runs"
        with step(record.vm, doing):
            if (found := self._find(places)) is not None:
                self._provisioner.networks.prepare(record, give_up_at=time.monotonic() + deadline_s, only_mend=True)
                self._update(record, places, found, min(deadline_s, self._answer_s))

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        """Ctrl-Alt-Del, then SIGKILL; the socket, which a VMM may leave behind, is removed."""
        places = self._layout.of(record.vm)
        self._end(places, grace_s=grace_s, give_up_at=time.monotonic() + grace_s + VMMS.kill_s)
        with step(record.vm, "removing its API socket and its jail"):
            places.socket.unlink(missing_ok=True)
            jail.sweep(places)

    def delete(self, record: VMRecord) -> None:
        """Kill what lives, and remove every file that was made here."""
        self.stop(record, grace_s=0)
        places = self._layout.of(record.vm)
        errors = [error for path in places.files() if (error := _not_removed(path))]
        with step(record.vm, "removing its disks and links"):
            self._provisioner.remove(record, give_up_at=time.monotonic() + VMMS.kill_s)
        with step(record.vm, "removing its files"):
            jail.release(places)
            if errors:  # whatever else could go is gone
                left = ", ".join(error.filename for error in errors)
                raise OSError(errors[0].errno, f"{errors[0].strerror}; still there: {left}")
            if (lock := locks.open_taken(places.lock)) is not None:
                locks.give_back(lock, unlink=places.lock)
        for folder in (places.run_folder, places.folder):
            with suppress(OSError):  # never made, or somebody else's file is in it, such as the record
                folder.rmdir()

    def strays(self, known: Container[str]) -> tuple[Stray, ...]:
        """VMMs that have a lock file of ours as standard input, or one that was moved away."""
        with step("", "looking for VMMs without a record"):
            found = [stray for strays in self._earlier.found().values() for stray in strays]
        for vm in self._layout.vms():
            if vm not in known:
                with step(vm, "looking for VMMs without a record"):
                    if (stray := vmm.find(self._layout.of(vm))) is not None:
                        found.append(Stray(vm=vm, pid=stray.pid))
        return tuple(found)

    def foreign(self) -> tuple[Stray, ...]:
        """Processes that look like VMMs of this kind and have no lock file of ours as standard input."""
        ours = {stray.pid for strays in self._earlier.found().values() for stray in strays}
        found = ((pid, self._is_one(name, argv)) for pid, name, argv in processes.programs())
        return tuple(
            Stray(vm=vm, pid=pid)
            for pid, vm in found
            if vm is not None and pid not in ours and not vmm.has_lock_file(self._layout.of(vm), pid)
        )

    def trim(self) -> None:
        """Free the disk of what nobody will read any more: all VMs, then the first error if there was one."""
        failed: ActionError | None = None
        for vm in self._layout.folders():
            try:
                with step(vm, "capping its console"):
                    _cap(self._layout.of(vm))
            except ActionError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        """The end of the console, which goes on over restarts."""
        with step(vm, "reading its console"):
            return part(self._layout.of(vm).console, max_bytes, after)

    def _check(self, record: VMRecord, places: Places) -> None:
        problem = self.unsupported(record.spec)
        size = len(str(places.socket).encode())
        if problem is None and size > VMMS.socket_path_bytes:
            problem = (
                f"the path of its API socket, {places.socket}, has {size} bytes and Linux takes "
                f"{VMMS.socket_path_bytes}; set MIKROM_RUN_DIR to a shorter folder, or give the VM a shorter name"
            )
        if problem is not None:
            raise PermanentError(problem, vm=record.vm, step="checking its spec")

    def _runs_already(self, record: VMRecord, places: Places) -> bool:
        with step(record.vm, "looking for its VMM"):
            found = self._find(places)
            if not isinstance(found, Proc) or found.uid != record.uid:
                return False
            facts = self._ask(record, places, found)
            return facts is not None and facts.status in _BOOTED

    def _find(self, places: Places) -> processes.Identity | None:
        """The proven VMM. Raises PermanentError if another driver started it: it is not ours to judge or replace."""
        found = vmm.find(places)
        if isinstance(found, Proc) and found.driver != self.name:
            raise PermanentError(
                f"its VMM (pid {found.pid}) was started by the driver {found.driver} and this is {self.name}: "
                f"stop it with MIKROM_DRIVER={found.driver}, or go on with that driver",
                vm=places.vm,
                step="looking for its VMM",
            )
        return found

    def _ask(self, record: VMRecord, places: Places, found: processes.Identity) -> VMMFacts | None:
        """What is known of a proven VMM; None when it has died meanwhile."""
        answer = Answer(status="unresponsive")
        for share in PATIENCE:
            try:
                answer = self._answer(record, places, found, share * self._answer_s)
                break
            except (UnreachableError, NoAnswerError) as error:
                if not vmm.is_vmm(places, found):
                    return None
                if isinstance(error, UnreachableError):
                    answer = Answer(status="starting" if processes.age_s(found) < VMMS.boot_s else "socket_lost")
                    break
        if answer.status in _BOOTED:
            _cap(places)
        return VMMFacts(
            status=answer.status,
            pid=found.pid,
            age_s=processes.age_s(found),
            machine=answer.machine,
            console_at=found.console_at if isinstance(found, Proc) else 0,
            boot_args=record.spec.boot_args if answer.boot_args == boot_args_of(record) else answer.boot_args,
            disks=None if answer.disks is None else self._own_disks(record, answer.disks),
            odd_metadata=() if answer.metadata is None else self._odd_metadata(record, answer.metadata),
            interfaces=None if answer.interfaces is None else self._own_interfaces(record, answer.interfaces),
        )

    def _own_disks(self, record: VMRecord, found: dict[str, str]) -> frozenset[str]:
        """The disks that the VMM has open and that are the VM's, each under its own path."""
        if not found:
            return frozenset()
        paths = {disk.name: str(disk.path) for disk in self._provisioner.disks_of(record)}
        return frozenset(name for name, path in found.items() if paths.get(name) == path)

    def _odd_metadata(self, record: VMRecord, found: dict[str, Any]) -> tuple[str, ...]:
        """The keys that differ; none if a secret cannot be had now: what cannot be read is not said to differ."""
        try:
            wanted = self._provisioner.metadata_of(record) or {}
        except PermanentError:
            return ()
        return tuple(sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)))

    def _own_interfaces(self, record: VMRecord, found: dict[str, Interface]) -> dict[str, int | None]:
        """The bandwidths of the interfaces that are the VM's: of its MAC address, and over its tap, which is there."""
        if not record.spec.network_interfaces:
            return {}
        wanted = ((own.name, own, found.get(own.name)) for own in self._provisioner.networks.in_place(record))
        return {
            name: there.bandwidth_mbit
            for name, own, there in wanted
            if there is not None and (own.tap, own.mac) == (there.tap, there.mac)
        }

    def _find_and_set_paused(self, record: VMRecord, doing: str, deadline_s: float, *, paused: bool) -> None:
        places = self._layout.of(record.vm)
        with step(record.vm, doing):
            if (found := self._find(places)) is None:
                raise TemporaryError("no VMM of it lives any more", vm=record.vm, step=doing)
            self._set_paused(places, found, min(deadline_s, self._answer_s), paused=paused)

    def _end(self, places: Places, *, grace_s: float, give_up_at: float) -> None:
        def leave(found: processes.Identity) -> bool:
            try:
                self._ask_to_leave(places, found, min(grace_s, self._answer_s))
            except (FaultError, UnreachableError, NoAnswerError):
                return False
            return True

        vmm.end(places, grace_s=grace_s, leave=leave, give_up_at=give_up_at)

    def _last_end(self, places: Places) -> End:
        """How the VM's last VMM ended. It may have been started before the host was, or never written down."""
        proc = vmm.read_proc(places)
        if proc is None:
            return "unknown"
        return self._end_of(places) if proc.boot_id == processes.boot_id() else "rebooted"


def _not_removed(path: Path) -> OSError | None:
    """Remove a file; why it is still there, or None."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def _cap(places: Places) -> None:
    """Nothing that a guest can make grow takes more disk than twice its cap, from one look to the next."""
    log_bytes = VMMS.log_bytes
    for path, max_bytes in ((places.console, VMMS.console_bytes), (places.log, log_bytes), (places.metrics, log_bytes)):
        keep_tail(path, max_bytes=max_bytes)

"""What drivers share whose VMMs are processes: `firecracker.py` and `qemu.py` say what is their VMM's own."""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Balloon, Machine, VMSpec, Vsock
from mikrom_reconcile.core.model.errors import ActionError, PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import WANTS_VMM, Console, End, Stray, VMMFacts, VMMStatus
from mikrom_reconcile.core.specs.images import init_of
from mikrom_reconcile.host.drivers import memory
from mikrom_reconcile.host.drivers.jail import VMPaths, path_inside, release_uid, remove_jail
from mikrom_reconcile.host.drivers.vmm import VMM, Command, StateLayout, VMMProcess
from mikrom_reconcile.host.errors import NoAnswerError, UnreachableError, translate_errors
from mikrom_reconcile.host.ports import Compared, Driver, LinkDrift, VMRecord, compared_fields, drift_in
from mikrom_reconcile.host.resources.disks import ROOT_ID, Disk
from mikrom_reconcile.host.resources.networks import Interface
from mikrom_reconcile.host.resources.provisioner import ResourceProvisioner, VMResources, boot_args_of
from mikrom_reconcile.system import locks, processes
from mikrom_reconcile.system.files import free_head, tail
from mikrom_reconcile.times_and_sizes import VMMS

PATIENCE = (0.1, 1.4)
"""A VMM counts as unresponsive when it has not answered in these shares of `answer_s`: the first soon finds one whose
guest has ended."""

_EXIT_STATUS = re.compile(rb"^MIKROM-INIT exit status ([0-9]+)\r?$", re.MULTILINE)
_BOOTED = frozenset({"running", "paused"})


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a VMM says of itself; the rest means nothing unless its guest was booted. "unresponsive" stands for a state
    that no VMM in order has. `disks` maps the name of each disk that it has open to how it opened it, `interfaces` the
    name of each interface to what it has there. `entropy` is a device of random numbers.
    """

    status: VMMStatus
    machine: Machine | None = None
    boot_args: str | None = None
    disks: dict[str, Disk] = {}
    interfaces: dict[str, Interface] = {}
    entropy: bool = False
    vsock: Vsock | None = None
    balloon: Balloon | None = None
    imds_compat: bool = False
    metadata: dict[str, Any] | None = None


class VMMDriver(Driver, ABC):
    """The driver of one kind of VMM. `answer_s` is how long it waits for a VMM that should answer at once."""

    program: str  # what people call its VMM
    unpacked_kernel = False  # whether it boots no kernel that is packed, as distributions ship them

    def __init__(
        self,
        binary: Path,
        *,
        state_dir: Path,
        run_dir: Path,
        provisioner: ResourceProvisioner | None = None,
        answer_s: float = VMMS.answer_s,
    ) -> None:
        self._binary, self._answer_s = binary, answer_s
        self._layout = StateLayout(state_dir, run_dir)
        self._provisioner = provisioner or ResourceProvisioner(state_dir)

    # ---- what is each VMM's own: raises FaultError, UnreachableError, NoAnswerError, OSError ------------------------

    @abstractmethod
    def _unsupported(self, spec: VMSpec) -> str | None:
        """Why this VMM cannot run `spec`."""

    @abstractmethod
    def _kernel_problem(self, head: bytes) -> str | None:
        """Why this VMM cannot boot a kernel that begins with `head`, None if nothing speaks against it."""

    @abstractmethod
    def _vm_in(self, name: str, argv: list[str]) -> str | None:
        """The VM's name ("" if it has none) in the command line of a VMM of this kind; None: it is none."""

    @abstractmethod
    def _command(self, record: VMRecord, paths: VMPaths, resources: VMResources) -> Command:
        """How it is started, so that it waits with its guest for `_boot`."""

    @abstractmethod
    def _boot(self, record: VMRecord, vmm: VMM, resources: VMResources, *, give_up_at: float) -> None:
        """Configure it and let its guest run. Raises ActionErrors."""

    @abstractmethod
    def _answer(self, record: VMRecord, vmm: VMM, timeout_s: float) -> Answer:
        """What it says of itself."""

    @abstractmethod
    def _set_paused(self, vmm: VMM, timeout_s: float, *, paused: bool) -> None:
        """Let its vCPUs stand still or go on."""

    @abstractmethod
    def _update(self, record: VMRecord, vmm: VMM, timeout_s: float) -> None:
        """Bring a VMM to its record in what changes while it runs."""

    @abstractmethod
    def _ask_to_leave(self, vmm: VMM, timeout_s: float) -> None:
        """Ask its guest to shut down, one that is paused too."""

    @abstractmethod
    def _end_of(self, paths: VMPaths) -> End:
        """How its process, which was this boot's, ended."""

    def _resume(self, record: VMRecord, vmm: VMM, kept: memory.Kept, give_up_at: float) -> None:  # noqa: ARG002
        """Let its guest go on from its memory, which is forgotten just before."""
        raise PermanentError(f"{self.program} goes on from no memory")

    # ---- what is the same for all -----------------------------------------------------------------------------------

    def unsupported(self, spec: VMSpec) -> str | None:
        """Why this VMM cannot run `spec`, or nothing may be started here. Raises an ActionError of no VM."""
        with translate_errors("", "looking for VMMs of an earlier state folder"):
            return self._unsupported(spec) or self._layout.why_not_start()

    def observe(self, record: VMRecord) -> VMMFacts:
        vmm = self._vmm(record.home)
        with translate_errors(record.vm, "observing it"):
            if vmm.find() is not None and (facts := self._facts(record, vmm)) is not None:
                return facts
            processes.reap()
            if vmm.is_being_spawned():
                return VMMFacts(status="starting")
            return VMMFacts(status="none", end=self._judged_end(record, vmm.paths, vmm.last_process()))

    def _judged_end(self, record: VMRecord, paths: VMPaths, last: VMMProcess | None) -> End:
        """How it ended. A guest that reset itself has crashed if the init of a container image did not tell a 0."""
        if paths.suspended.exists():
            return "suspended"
        # what was written down of it may not outlive a power cut: then its record tells how long ago it was ordered up
        if (last.boot_id if last else record.boot_id) not in {"", processes.boot_id()}:
            return "rebooted"
        if last is None:
            return "unknown"
        end = self._end_of(paths)
        if end == "clean" and init_of(record.spec) == "mikrom":
            said = tail(paths.console, VMMS.exit_status_tail_bytes, last.console_at).content
            return "clean" if _EXIT_STATUS.findall(said)[-1:] == [b"0"] else "crashed"
        return end

    def links(self, but: str = "") -> LinkDrift:
        return self._provisioner.networks.drift(but)

    def watch(self, record: VMRecord) -> int | None:
        with translate_errors(record.vm, "opening a pidfd of its VMM"):
            found = self._vmm(record.home).find()
            return None if found is None else processes.open_pidfd(found)

    def start(self, record: VMRecord, *, deadline_s: float) -> str:
        """Make its resources ready, spawn the VMM, write it down, configure and boot it or let it go on."""
        give_up_at = time.monotonic() + deadline_s
        vmm = self._vmm(record.home)
        with translate_errors(record.vm, "checking its spec"):
            if unsupported := self.unsupported(record.spec) or _too_long(vmm.paths.socket):
                raise PermanentError(unsupported)
        if self._runs_already(record, vmm):
            return ""
        vmm.end(give_up_at=give_up_at)
        with translate_errors(record.vm, "making its kernel, disks and links ready"):
            resources = self._provisioner.prepare(record, give_up_at=give_up_at, unpacked_kernel=self.unpacked_kernel)
            with resources.kernel.open("rb") as kernel:
                head = kernel.read(VMMS.kernel_head_bytes)
            if problem := self._kernel_problem(head):
                raise PermanentError(problem)
        with translate_errors(record.vm, "preparing its start"):
            command, kept, note = self._command(record, vmm.paths, resources), memory.read(vmm.paths), ""
        try:
            if kept is not None:
                with vmm.spawned(command, record), translate_errors(record.vm, "resuming its memory"):
                    self._resume(record, vmm, kept, give_up_at)
                return "it went on from its memory"
        except ActionError as error:
            tries = record.attempt.count if record.attempt else 0
            if isinstance(error, TemporaryError) and tries + 1 < VMMS.resume_tries:
                raise
            note = f"a cold boot, its memory is lost: {error}"
        with translate_errors(record.vm, "forgetting its memory"):
            memory.forget(vmm.paths)
        with vmm.spawned(command, record):
            self._boot(record, vmm, resources, give_up_at=give_up_at)
        return note

    def set_paused(self, record: VMRecord, *, paused: bool, deadline_s: float) -> None:
        """The guest's clock stands still, too, and goes on from there."""
        vmm, doing = self._vmm(record.home), "pausing its guest" if paused else "resuming its guest"
        with translate_errors(record.vm, doing):
            if vmm.find() is None:
                raise TemporaryError("no VMM of it lives any more")
            self._set_paused(vmm, deadline_s, paused=paused)

    def update(self, record: VMRecord, *, deadline_s: float) -> None:
        """Change links that are there, and of a VMM that is to live what can be changed while its guest runs."""
        vmm = self._vmm(record.home)
        with translate_errors(record.vm, "changing it while it runs"):
            self._provisioner.networks.prepare(record, give_up_at=time.monotonic() + deadline_s, only_mend=True)
            if record.state in WANTS_VMM and vmm.find() is not None:
                self._update(record, vmm, deadline_s)

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        """Ctrl-Alt-Del, then SIGKILL; the socket, which a VMM may leave behind, is removed."""
        vmm = self._vmm(record.home)
        if record.state in {"stopped", "absent"}:
            with translate_errors(record.vm, "forgetting its memory"):
                memory.forget(vmm.paths)
        vmm.end(
            give_up_at=time.monotonic() + grace_s + VMMS.kill_s,
            grace_s=grace_s,
            ask_to_leave=lambda: self._ask_to_leave(vmm, min(grace_s, self._answer_s)),
        )
        with translate_errors(record.vm, "removing its API socket and its jail"):
            for socket in (vmm.paths.socket, vmm.paths.vsock):
                socket.unlink(missing_ok=True)
            remove_jail(vmm.paths)

    def delete(self, record: VMRecord) -> None:
        self.stop(record, grace_s=0)
        paths = self._layout.of(record.home)
        with translate_errors(record.vm, "removing its disks and links"):
            self._provisioner.remove(record, give_up_at=time.monotonic() + VMMS.kill_s)
        with translate_errors(record.vm, "removing its files"):
            for path in paths.files():
                path.unlink(missing_ok=True)
            release_uid(paths)
            with locks.held(paths.lock, unlink=True):
                pass  # its file goes, unless somebody holds it
        for folder in (paths.run_folder, paths.folder):
            with suppress(OSError):  # never made, or somebody else's file is in it, such as the record
                folder.rmdir()

    def strays(self, known: Container[str]) -> tuple[Stray, ...]:
        """VMMs that have a lock file of ours as standard input, or one that was moved away."""
        with translate_errors("", "looking for VMMs without a record"):
            found = [stray for _, stray in self._layout.moved_vmms()]
        for vm in self._layout.vms():
            if vm not in known:
                with translate_errors(vm, "looking for VMMs without a record"):
                    if (stray := self._vmm(vm).find_any()) is not None:
                        found.append(Stray(vm=vm, pid=stray.pid))
        return tuple(found)

    def foreign(self) -> tuple[Stray, ...]:
        """Processes that look like VMMs of this kind and have no lock file of ours as standard input."""
        ours = {stray.pid for _, stray in self._layout.moved_vmms()} | self._adopted().keys()
        found = ((pid, self._vm_in(name, argv)) for pid, name, argv in processes.programs())
        return tuple(
            Stray(vm=vm, pid=pid)
            for pid, vm in found
            if vm is not None and pid not in ours and not self._vmm(vm).has_lock_file(pid)
        )

    def _adopted(self) -> dict[int, str]:
        """The pids of VMMs that were started by hand and taken over, and whose they are."""
        vmms = map(self._vmm, self._layout.folders())
        return {vmm.process.pid: vmm.vm for vmm in vmms if vmm.find_any() and vmm.adopted}

    def trim(self) -> None:
        """Free the disk of what nobody will read any more: all VMs, then the first error if there was one."""
        failed: ActionError | None = None
        for vm in self._layout.folders():
            try:
                with translate_errors(vm, "capping its console"):
                    _cap(self._layout.of(vm))
            except ActionError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        with translate_errors(vm, "reading its console"):
            return tail(self._layout.of(vm).console, max_bytes, after)

    def _vmm(self, vm: str) -> VMM:
        return VMM(self._layout.of(vm), driver=self.name, program=self.program)

    def _runs_already(self, record: VMRecord, vmm: VMM) -> bool:
        with translate_errors(record.vm, "looking for its VMM"):
            found = vmm.find()
            if not isinstance(found, VMMProcess) or found.uid != record.uid:
                return False
            facts = self._facts(record, vmm)
            return facts is not None and facts.status in _BOOTED

    def _facts(self, record: VMRecord, vmm: VMM) -> VMMFacts | None:
        """What is known of a proven VMM; None when it has died meanwhile."""
        process = vmm.process
        answer = Answer(status="unresponsive")
        for share in PATIENCE:
            try:
                answer = self._answer(record, vmm, share * self._answer_s)
                break
            except (UnreachableError, NoAnswerError) as error:
                if not vmm.is_proven(process):
                    return None
                if isinstance(error, UnreachableError):
                    answer = Answer(status="starting" if processes.age_s(process) < VMMS.boot_s else "socket_lost")
                    break
        is_booted = answer.status in _BOOTED
        if is_booted:
            _cap(vmm.paths)
        return VMMFacts(
            status=answer.status,
            pid=process.pid,
            age_s=processes.age_s(process),
            drift=drift_in(self._compared(record, answer, vmm.paths)) if is_booted else (),
            console_at=process.console_at if isinstance(process, VMMProcess) else 0,
        )

    def _compared(self, record: VMRecord, answer: Answer, paths: VMPaths) -> Iterator[Compared]:
        """What the VMM of a guest that was booted says, beside its record."""
        if answer.machine is not None:
            yield from compared_fields("machine", record.spec.machine, answer.machine)
        if answer.boot_args not in {None, boot_args_of(record)}:
            yield "boot_args", record.spec.boot_args, answer.boot_args
        yield from self._compared_disks(record, answer.disks, is_jailed=paths.socket.is_symlink())
        yield from self._compared_interfaces(record, answer.interfaces)
        yield from _compared_devices(record.spec, answer)
        if answer.metadata is not None:
            yield from self._compared_metadata(record, answer.metadata)

    def _compared_disks(self, record: VMRecord, found: dict[str, Disk], *, is_jailed: bool) -> Iterator[Compared]:
        for disk in self._provisioner.disks_of(record):
            path, there = f"drives.{disk.name}", found.get(disk.name)
            if there is None or str(there.path) != (path_inside(disk) if is_jailed else str(disk.path)):
                yield path, disk.name, None
            elif disk.name != ROOT_ID:
                yield f"{path}.read_only", disk.read_only, there.read_only
                yield f"{path}.is_root_device", disk.is_root, there.is_root
                yield from compared_fields(f"{path}.rate_limiter", disk.rate_limiter, there.rate_limiter)

    def _compared_interfaces(self, record: VMRecord, found: dict[str, Interface]) -> Iterator[Compared]:
        """One counts as there if it has the VM's MAC address and its tap, which is there."""
        taps = {own.name: own for own in self._provisioner.networks.in_place(record)}
        for name, nic in record.spec.network_interfaces.items():
            path, own, there = f"network_interfaces.{name}", taps.get(name), found.get(name)
            if own is None or there is None or (own.tap, own.mac) != (there.tap, there.mac):
                yield path, nic.network, None
            else:
                yield f"{path}.rate_limiter.bandwidth_mbit", own.bandwidth_mbit, there.bandwidth_mbit
                yield f"{path}.mtu", own.mtu, there.mtu

    def _compared_metadata(self, record: VMRecord, found: dict[str, Any]) -> Iterator[Compared]:
        """Nothing if a secret cannot be had now: what cannot be read is not said to differ."""
        with suppress(PermanentError):
            wanted = self._provisioner.metadata_of(record) or {}
            odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
            yield from ((f"mmds.{key}", "(as the spec says)", "(changed)") for key in odd)


def _compared_devices(spec: VMSpec, found: Answer) -> Iterator[Compared]:
    if found.entropy and not spec.entropy:  # a VM of an earlier release lacks it until it is restarted anyway
        yield "entropy", False, True
    yield "mmds_config.imds_compat", spec.mmds_config.imds_compat, found.imds_compat
    for name in ("vsock", "balloon"):
        wanted, there = getattr(spec, name), getattr(found, name)
        if wanted is None or there is None:
            yield name, wanted and name, there and name
        else:
            yield from compared_fields(name, wanted, there)


def _too_long(socket: Path) -> str:
    """Why no VMM can listen there, "" if one can."""
    if (size := len(os.fsencode(socket))) <= VMMS.socket_path_bytes:
        return ""
    problem = f"the path of its API socket, {socket}, has {size} bytes and Linux takes {VMMS.socket_path_bytes}"
    return f"{problem}; set MIKROM_RUN_DIR to a shorter folder, or give the VM a shorter name"


def _cap(paths: VMPaths) -> None:
    """Nothing that a guest can make grow takes more disk than twice its cap, from one look to the next."""
    caps = {paths.console: VMMS.console_bytes, paths.log: VMMS.log_bytes, paths.metrics: VMMS.log_bytes}
    for path, max_bytes in caps.items():
        free_head(path, max_bytes=max_bytes)

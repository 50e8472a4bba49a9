"""Firecracker microVMs, jailed or not: processes of their own session that outlive whoever started them."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.errors import MikromError, PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import Described, End, VMMFacts, VMMStatus
from mikrom_reconcile.core.specs import releases, validate_vms
from mikrom_reconcile.host.drivers import adoption, firecracker_config, jail, memory, select
from mikrom_reconcile.host.drivers.connection import FirecrackerAPI
from mikrom_reconcile.host.drivers.jail import Jail, VMPaths
from mikrom_reconcile.host.drivers.vmm import VMM, Command
from mikrom_reconcile.host.drivers.vmm_driver import Answer, VMMDriver
from mikrom_reconcile.host.errors import FaultError, NoAnswerError, translate_errors
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.provisioner import VMResources
from mikrom_reconcile.system import locks, processes
from mikrom_reconcile.system.files import make_folder, tail
from mikrom_reconcile.times_and_sizes import VMMS

_STATUS: dict[str, VMMStatus] = {"Not started": "starting", "Running": "running", "Paused": "paused"}

_FREE_HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
_X86_64 = (62).to_bytes(2, "little")
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5": "zstd", b"\xfd\x37": "xz"}


class _Instance(msgspec.Struct):
    state: str
    vmm_version: str


class _Metrics(msgspec.Struct):
    utc_timestamp_ms: int = 0
    i8042: dict[str, Any] = {}
    vcpu: dict[str, Any] = {}


class FirecrackerDriver(VMMDriver):
    """The driver for Firecracker. With a `jailer` every VMM is started in a jail."""

    name = "firecracker"
    program = "Firecracker"
    suspends = True
    unpacked_kernel = True

    def __init__(self, binary: Path, *, jailer: Path | None = None, **settings: Any) -> None:
        super().__init__(binary, **settings)
        self._jailer = jailer

    def memory_mib(self, spec: VMSpec) -> int:
        """Firecracker itself takes some 2 MiB, which the host's own reserve has to bear."""
        return spec.machine.mem_size_mib

    def _unsupported(self, spec: VMSpec) -> str | None:
        version, cgroups = select.release_at(self._binary), jail.hierarchy()[0]
        jailer = releases.jailer_problem(select.release_at(self._jailer), cgroups) if self._jailer else ""
        return validate_vms.unsupported(spec) or validate_vms.unsupported_by(version, spec) or jailer or None

    def _kernel_problem(self, head: bytes) -> str | None:
        if head[:4] != b"\x7fELF":
            packed = _PACKED.get(head[:2])
            found = f"packed with {packed}: unpack it" if packed else "no ELF file"
            return f"its kernel is {found}; Firecracker boots a vmlinux"
        if head[18:20] != _X86_64:
            return f"its kernel is for another CPU (ELF machine {int.from_bytes(head[18:20], 'little')}, x86-64 is 62)"
        return None

    def _vm_in(self, name: str, argv: list[str]) -> str | None:
        if not name.startswith("firecracker") and "--api-sock" not in argv:  # jailed ones have another name
            return None
        return argv[argv.index("--id") + 1] if "--id" in argv[:-1] else ""

    def _command(self, record: VMRecord, paths: VMPaths, resources: VMResources) -> Command:
        _check_huge_pages(record)
        own_jail = None if self._jailer is None else Jail(paths, self._binary, resources)
        start: tuple[str, ...] = (str(self._binary), "--id", paths.vm)
        socket, log, metrics = str(paths.socket), str(paths.log), str(paths.metrics)
        if own_jail is not None:
            jailed = own_jail.arguments(record.spec.machine)
            start = (str(self._jailer), "--exec-file", str(self._binary), *jailed, "--")
            socket, log, metrics = paths.jailed_socket, jail.LOG, jail.METRICS
        # a level lower it logs each request, so each observation
        argv = (*start, "--api-sock", socket, "--log-path", log, "--level", "Warn", "--metrics-path", metrics)
        return Command(argv=argv, output=paths.console, jail=own_jail)

    def _boot(self, record: VMRecord, vmm: VMM, resources: VMResources, *, give_up_at: float) -> None:
        paths, vsock = vmm.paths, str(vmm.paths.vsock)
        if self._jailer:
            resources, vsock = jail.chroot_view(resources), jail.VSOCK
        _link_vsock(record, paths)
        most = releases.release_of(select.release_at(self._binary)).devices
        configuration = (
            *firecracker_config.requests(record.spec, resources),
            *firecracker_config.devices(record.spec, vsock, most),
        )
        with translate_errors(record.vm, "connecting to Firecracker"):
            api = FirecrackerAPI.first(paths.socket, vmm.process, give_up_at)
        with api:
            for requests in (configuration, (firecracker_config.START,)):  # no guest boots but as it is configured
                with translate_errors(record.vm, requests[0][2]):
                    api.send("PUT", *((path, content) for path, content, _ in requests))
                for path, _, doing in requests:
                    with translate_errors(record.vm, doing):
                        api.check("PUT", path)

    def _answer(self, record: VMRecord, vmm: VMM, timeout_s: float) -> Answer:
        try:
            with vmm.connect(FirecrackerAPI, timeout_s) as api:
                api.ask("/", "/vm/config", *(("/mmds",) if record.spec.has_metadata else ()))
                state = api.told("/", _Instance).state
                config = api.told("/vm/config", firecracker_config.Config)
                metadata = api.told("/mmds", dict[str, Any]) if record.spec.has_metadata else None
        except NoAnswerError:
            _end_hanging(vmm)
            raise
        status = _STATUS.get(state, "unresponsive")
        if status not in {"running", "paused"}:
            return Answer(status=status)
        disks = {drive.drive_id: firecracker_config.disk_of(drive) for drive in config.drives}
        if vmm.adopted:
            folder = Path(f"/proc/{vmm.process.pid}/cwd").readlink()
            disks = {name: replace(disk, path=folder / disk.path) for name, disk in disks.items()}
        return Answer(
            status=status,
            machine=config.machine_config,
            boot_args=config.boot_source.get("boot_args") or "",
            disks=disks,
            interfaces={nic.iface_id: firecracker_config.interface_of(nic) for nic in config.network_interfaces},
            entropy=config.entropy is not None,
            vsock=config.vsock,
            balloon=config.balloon,
            imds_compat=bool(config.mmds_config and config.mmds_config.imds_compat),
            metadata=metadata,
        )

    def described(self, socket: str) -> Described:
        """By asking it, and looking for its files."""
        try:
            with translate_errors("", f"looking at {socket}"):
                process, image, template = adoption.look(socket, self._provisioner, self._answer_s)
        except MikromError as error:
            return Described(problem=str(error))
        return Described(pid=process.pid, image=image, template=template)

    def adopt(self, record: VMRecord, socket: str, judge: Callable[[VMMFacts], None], *, deadline_s: float) -> None:
        """By its process alone: it has no lock of ours."""
        vmm, give_up_at = self._vmm(record.home), time.monotonic() + deadline_s
        one_at_a_time = locks.held(vmm.paths.lock.with_name("adopting"), until=give_up_at)
        with translate_errors(record.vm, "taking it over"), one_at_a_time as is_ours:
            process, *_ = adoption.look(socket, self._provisioner, deadline_s)
            owner, other = self._adopted().get(process.pid, record.home), vmm.find_any()
            if not is_ours or owner != record.home or (other and other.pid != process.pid):
                raise PermanentError(f"pid {process.pid} is {owner}, and {record.home} has pid {other and other.pid}")
            vmm.take(process, record, socket=socket)
            judge(self._facts(record, vmm) or VMMFacts(status="none"))
            self._provisioner.prepare(record, give_up_at=give_up_at)
            make_folder(vmm.paths.folder)
            with locks.held(vmm.paths.lock):  # its file says that there is a VMM, should the record be lost
                vmm.write_down()

    def _set_paused(self, vmm: VMM, timeout_s: float, *, paused: bool) -> None:
        with vmm.connect(FirecrackerAPI, timeout_s) as api:
            if paused:
                api.patch("/vm", {"state": "Paused"})
            else:
                _go_on(api, vmm)

    def suspend(self, record: VMRecord, *, deadline_s: float) -> None:
        vmm = self._vmm(record.home)
        with translate_errors(record.vm, "writing its memory to disk"):
            if vmm.find() is not None:
                if vmm.adopted:  # its memory names its files as it does: mostly from its own folder on
                    raise PermanentError("it was started by hand: restart it once, or say paused")
                with vmm.connect(FirecrackerAPI, deadline_s) as api:
                    self._write_memory(record, vmm.paths, api)

    def _write_memory(self, record: VMRecord, paths: VMPaths, api: FirecrackerAPI) -> None:
        before = api.get("/", _Instance)
        if before.state == "Not started":
            return
        if record.spec.machine.huge_pages == "2M":
            raise PermanentError("Firecracker reads no memory of huge pages back from a file: say paused or stopped")
        memory.forget(paths)
        devices, content = memory.create(paths, record)
        try:
            api.patch("/vm", {"state": "Paused"})
            files = {"snapshot_path": devices, "mem_file_path": content}
            api.put("/snapshot/create", {"snapshot_type": "Full"} | files)
            memory.keep(paths, record, self._provisioner.disks_of(record), vmm=_version(before, paths))
        except BaseException:
            memory.forget(paths)
            if before.state == "Running":
                with suppress(FaultError, NoAnswerError):
                    api.patch("/vm", {"state": "Resumed"})
            raise

    def _resume(self, record: VMRecord, vmm: VMM, kept: memory.Kept, give_up_at: float) -> None:
        _link_vsock(record, vmm.paths)
        with FirecrackerAPI.first(vmm.paths.socket, vmm.process, give_up_at) as api:
            memory.check(kept, record, vmm=_version(api.get("/", _Instance), vmm.paths))
            devices, content = (jail.seen_by_vmm(vmm.paths, path) for path in (vmm.paths.devices, vmm.paths.memory))
            backend = {"backend_type": "File", "backend_path": content}
            api.put("/snapshot/load", {"snapshot_path": devices, "mem_backend": backend, "resume_vm": False})
            self._update(record, vmm, self._answer_s)  # metadata is no part of it, and limits may have changed
            _go_on(api, vmm)

    def _update(self, record: VMRecord, vmm: VMM, timeout_s: float) -> None:
        with vmm.connect(FirecrackerAPI, timeout_s) as api:
            config = api.get("/vm/config", firecracker_config.Config)
            limits = {drive.drive_id: firecracker_config.disk_of(drive).rate_limiter for drive in config.drives}
            for name, drive in record.spec.drives.items():
                if limits.get(name, drive.rate_limiter) != drive.rate_limiter:
                    limiter = firecracker_config.limiter_of(drive.rate_limiter)
                    api.patch(f"/drives/{name}", {"drive_id": name, "rate_limiter": limiter})
            if record.spec.balloon and config.balloon and config.balloon.amount_mib != record.spec.balloon.amount_mib:
                api.patch("/balloon", {"amount_mib": record.spec.balloon.amount_mib})
            there = {nic.iface_id: firecracker_config.interface_of(nic) for nic in config.network_interfaces}
            for interface in self._provisioner.networks.in_place(record):
                has = there.get(interface.name)
                if has is not None and has.bandwidth_mbit != interface.bandwidth_mbit:
                    content = {"iface_id": interface.name} | firecracker_config.rate_limiters(interface)
                    api.patch(f"/network-interfaces/{interface.name}", content)
            if (metadata := self._provisioner.metadata_of(record)) is not None:
                api.put("/mmds", metadata)

    def _ask_to_leave(self, vmm: VMM, timeout_s: float) -> None:
        with vmm.connect(FirecrackerAPI, timeout_s) as api:
            # the request that ends the guest comes last: another one at that moment makes Firecracker hang
            if api.get("/", _Instance).state == "Paused":
                _go_on(api, vmm)
            api.put("/actions", {"action_type": "SendCtrlAltDel"})

    def _end_of(self, paths: VMPaths) -> End:
        end = end_in(paths.metrics)
        return "oom" if end == "killed" and jail.ran_out_of_memory(paths) else end


def _version(instance: _Instance, paths: VMPaths) -> str:
    """What a memory is bound to; the paths in it are those of a jail, or not."""
    return f"Firecracker {instance.vmm_version}{' in a jail' if paths.socket.is_symlink() else ''}"


def _go_on(api: FirecrackerAPI, vmm: VMM) -> None:
    """Let a guest run that stands still, and never again from what memory it left on disk."""
    memory.forget(vmm.paths)
    api.patch("/vm", {"state": "Resumed"})


def _link_vsock(record: VMRecord, paths: VMPaths) -> None:
    """Let it be found in its usual place, were it made in a jail."""
    if record.spec.vsock and paths.socket.is_symlink():
        with translate_errors(record.vm, "linking its vsock"):
            paths.vsock.symlink_to(f"{paths.socket.readlink().parent}{jail.VSOCK}")


def _check_huge_pages(record: VMRecord) -> None:
    """Firecracker only says that it could not read the kernel."""
    if record.spec.machine.huge_pages == "2M":
        need, free = record.spec.machine.mem_size_mib // 2, int(_FREE_HUGE_PAGES.read_text(encoding="ascii"))
        if need > free:
            lack = f"machine.huge_pages takes {need} pages of 2 MiB and {free} are free here"
            raise TemporaryError(f"{lack}: raise vm.nr_hugepages")


def end_in(metrics: Path) -> End:
    """How the process that wrote `metrics` ended: its exit status says nothing, and is not ours to get. Raises OSError.
    Measured with 1.12.1: the last line after a reset by the guest has i8042.reset_count 1, after a crash of the guest
    vcpu.failures 1, and a killed process writes none. Counters start anew with each line. An ordinary KVM tells of no
    failure when a guest crashes: all that says so then is a last line that came before its time.
    """
    end: End = "killed"
    written_ms, since_ms = 0, 0
    for line in tail(metrics, VMMS.metrics_tail_bytes).content.split(b"\n"):
        if (counters := decoded(line.strip(b"\0"), _Metrics)) is None:
            continue  # the first line of the tail, or one that a kill cut short
        since_ms = counters.utc_timestamp_ms - written_ms if written_ms else 0
        written_ms = counters.utc_timestamp_ms
        if counters.i8042.get("reset_count"):
            end = "clean"
        elif counters.vcpu.get("failures"):
            end = "crashed"
    return "crashed" if end == "killed" and 0 < since_ms < VMMS.metrics_interval_ms else end


def _end_hanging(vmm: VMM) -> None:
    """Let a Firecracker end that hangs since its guest has ended. One in order, or about to boot, is left alone.
    Firecracker 1.12.1 never ends by itself if a request comes at the very moment its guest ends: its main thread waits
    for the API's and that for an answer. Its metrics begin when its vCPUs do, whose threads end with the guest. At a
    SIGHUP it still writes how that was.
    """
    has_booted = tail(vmm.paths.metrics, 1).content
    if has_booted and not any(name.startswith("fc_vcpu") for name in processes.threads_of(vmm.process.pid)):
        processes.kill(vmm.process, signal.SIGHUP)
        processes.wait_for_end(vmm.process, VMMS.leave_s)

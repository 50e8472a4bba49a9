"""Firecracker microVMs without the jailer: processes of their own session that outlive whoever started them.

`vmm.py` says how a VMM is found, proven and ended, `firecracker_start.py` in which order one is brought up, and
`firecracker_end.py` how one ended. What is Firecracker's here is asking a VMM, and asking it to leave.
"""

from __future__ import annotations

import time
from collections.abc import Container
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from mikrom_reconcile.core.errors import ActionError, PermanentError, TemporaryError
from mikrom_reconcile.core.lifecycle import BOOT_S
from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.core.model.observed import Console, End, Stray, VMMFacts, VMMStatus
from mikrom_reconcile.host import process
from mikrom_reconcile.host.drivers import limits, vmm
from mikrom_reconcile.host.drivers.failures import step
from mikrom_reconcile.host.drivers.firecracker_api import Api, FaultError, NoAnswerError, UnreachableError
from mikrom_reconcile.host.drivers.firecracker_end import end_of, part
from mikrom_reconcile.host.drivers.firecracker_start import abandon, boot, spawn
from mikrom_reconcile.host.drivers.vmm import Layout, Places, Proc
from mikrom_reconcile.host.holes import keep_tail
from mikrom_reconcile.host.images import kernel_of_hello
from mikrom_reconcile.host.ports import VMRecord

MAX_SOCKET_PATH_BYTES = 107
"""The room in sockaddr_un, without the final zero."""

ANSWER_S = 1.0
"""A VMM answers within a millisecond or two, also beside a thousand others."""

ATTEMPTS = 2
"""A VMM counts as unresponsive when it has failed to answer this often in a row."""


_UP: dict[str, VMMStatus] = {"Running": "running", "Paused": "paused"}


CONSOLE_BYTES = 1 << 20
"""What is kept of a console at least: some ten thousand lines."""

LOG_BYTES = 256 << 10
"""…and of what the VMM logs and counts; metrics are a line of 4 kB a minute."""


class _Instance(msgspec.Struct):
    state: str


class _BootSource(msgspec.Struct):
    boot_args: str | None = None


class _Config(msgspec.Struct, rename="kebab"):
    machine_config: Machine
    boot_source: _BootSource


class FirecrackerDriver:
    """The driver for real microVMs. `answer_s` is how long it waits for a VMM that should answer at once."""

    name = "firecracker"
    takes_memory = True

    def __init__(self, binary: Path, *, state_dir: Path, run_dir: Path, answer_s: float = ANSWER_S) -> None:
        self._binary = binary
        self._layout = Layout(state_dir, run_dir)
        self._answer_s = answer_s

    def unsupported(self, spec: VMSpec) -> str | None:
        """Why Firecracker cannot run `spec`."""
        return limits.unsupported(spec)

    def observe(self, record: VMRecord) -> VMMFacts:
        """What is provably there. Raises an ActionError if this *process* cannot look; that says nothing of the VM."""
        places = self._layout.of(record.vm)
        with step(record.vm, "observing it"):
            found = vmm.find(places)
            if found is not None and (facts := self._ask(places, found)) is not None:
                return facts
            process.reap()
            if vmm.is_being_spawned(places):
                return VMMFacts(status="starting")
            return VMMFacts(status="none", end=_last_end(places))

    def watch(self, record: VMRecord) -> int | None:
        """A pidfd of the proven VMM."""
        with step(record.vm, "opening a pidfd of its VMM"):
            found = vmm.find(self._layout.of(record.vm))
            return None if found is None else process.open_pidfd(found)

    def start(self, record: VMRecord, *, deadline_s: float) -> None:
        """Spawn, write down, configure, boot."""
        give_up_at = time.monotonic() + deadline_s
        places = self._layout.of(record.vm)
        self._check(record, places)
        if self._runs_already(record, places):
            return
        self._end(places, grace_s=0, give_up_at=give_up_at)
        with step(record.vm, "copying its image"):
            kernel = kernel_of_hello(self._layout.images)
        proc = spawn(self._binary, record, places)
        try:
            boot(record, places, proc, kernel, give_up_at=give_up_at)
        except BaseException:
            abandon(places, proc)
            raise

    def pause(self, record: VMRecord, *, deadline_s: float) -> None:
        """The guest's clock stands still, too, and goes on from there."""
        self._set_state(record, "Paused", "pausing its guest", deadline_s)

    def resume(self, record: VMRecord, *, deadline_s: float) -> None:
        """The vCPUs go on."""
        self._set_state(record, "Resumed", "resuming its guest", deadline_s)

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        """Ctrl-Alt-Del, then SIGKILL; the socket, which Firecracker leaves behind, is removed."""
        places = self._layout.of(record.vm)
        self._end(places, grace_s=grace_s, give_up_at=time.monotonic() + grace_s + vmm.KILL_S)
        with step(record.vm, "removing its API socket"):
            places.socket.unlink(missing_ok=True)

    def delete(self, record: VMRecord) -> None:
        """Kill what lives, and remove every file that was made here but the lock."""
        self.stop(record, grace_s=0)
        places = self._layout.of(record.vm)
        errors = [error for path in places.files() if (error := _not_removed(path))]
        with step(record.vm, "removing its files"):
            if errors:  # whatever else could go is gone
                left = ", ".join(error.filename for error in errors)
                raise OSError(errors[0].errno, f"{errors[0].strerror}; still there: {left}")
        for folder in (places.run_folder, places.folder):
            with suppress(OSError):  # never made, or somebody else's file is in it, such as the record
                folder.rmdir()

    def strays(self, known: Container[str]) -> tuple[Stray, ...]:
        """VMMs that have a lock file of ours as standard input."""
        found = []
        for vm in self._layout.vms():
            if vm not in known:
                with step(vm, "looking for VMMs without a record"):
                    if (stray := vmm.find(self._layout.of(vm))) is not None:
                        found.append(Stray(vm=vm, pid=stray.pid))
        return tuple(found)

    def foreign(self) -> tuple[Stray, ...]:
        """Processes that look like a Firecracker and have no lock file of ours as standard input, jailed ones too."""
        return tuple(
            Stray(vm=_named(argv), pid=pid)
            for pid, name, argv in process.programs()
            if (name.startswith("firecracker") or "--api-sock" in argv)
            and not self._layout.is_lock(process.stdin_of(pid))
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
        if problem is None and size > MAX_SOCKET_PATH_BYTES:
            problem = (
                f"the path of its API socket, {places.socket}, has {size} bytes and Linux takes "
                f"{MAX_SOCKET_PATH_BYTES}; set MIKROM_RUN_DIR to a shorter folder, or give the VM a shorter name"
            )
        if problem is not None:
            raise PermanentError(problem, vm=record.vm, step="checking its spec")

    def _runs_already(self, record: VMRecord, places: Places) -> bool:
        with step(record.vm, "looking for its VMM"):
            found = vmm.find(places)
            if not isinstance(found, Proc) or found.uid != record.uid:
                return False
            facts = self._ask(places, found)
            return facts is not None and facts.status in _UP.values()

    def _ask(self, places: Places, found: process.Identity) -> VMMFacts | None:
        """What a proven VMM says of itself; None when it has died meanwhile.

        Firecracker 1.12.1 never ends by itself if a request comes at the very moment its guest ends: its main thread
        waits for the API's and that for an answer. It is unresponsive then, and the next start or stop kills it.
        """
        alive = partial(VMMFacts, pid=found.pid, age_s=process.age_s(found))
        for _ in range(ATTEMPTS):
            try:
                with self._api(places, found, self._answer_s) as api:
                    state = api.get("/", _Instance).state
                    config = api.get("/vm/config", _Config)
            except UnreachableError:
                if not vmm.is_vmm(places, found):
                    return None
                return alive(status="starting" if process.age_s(found) < BOOT_S else "socket_lost")
            except NoAnswerError:
                if not vmm.is_vmm(places, found):
                    return None
                continue
            if state == "Not started":
                return alive(status="starting")
            if (status := _UP.get(state)) is not None:
                _cap(places)
                return alive(status=status, machine=config.machine_config, boot_args=config.boot_source.boot_args or "")
            break  # no state that Firecracker has
        return alive(status="unresponsive")

    def _set_state(self, record: VMRecord, state: str, doing: str, deadline_s: float) -> None:
        places = self._layout.of(record.vm)
        with step(record.vm, doing):
            if (found := vmm.find(places)) is None:
                raise TemporaryError("no VMM of it lives any more", vm=record.vm, step=doing)
            with self._api(places, found, min(deadline_s, self._answer_s)) as api:
                api.patch("/vm", {"state": state})

    def _end(self, places: Places, *, grace_s: float, give_up_at: float) -> None:
        def leave(found: process.Identity) -> bool:
            try:
                with self._api(places, found, min(grace_s, self._answer_s)) as api:
                    # the request that ends the guest comes last: another one at that moment makes Firecracker hang
                    if api.get("/", _Instance).state == "Paused":
                        api.patch("/vm", {"state": "Resumed"})
                    api.put("/actions", {"action_type": "SendCtrlAltDel"})
            except (FaultError, UnreachableError, NoAnswerError):
                return False
            return True

        vmm.end(places, grace_s=grace_s, leave=leave, give_up_at=give_up_at)

    @staticmethod
    def _api(places: Places, found: process.Identity, timeout_s: float) -> Api:
        return Api(str(places.socket), pid=found.pid, give_up_at=time.monotonic() + timeout_s)


def _named(argv: list[str]) -> str:
    """The microVM's name in the command line of a Firecracker."""
    return argv[argv.index("--id") + 1] if "--id" in argv[:-1] else ""


def _not_removed(path: Path) -> OSError | None:
    """Remove a file; why it is still there, or None."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def _cap(places: Places) -> None:
    """Nothing that a guest can make grow takes more disk than twice its cap, from one look to the next."""
    for path, max_bytes in ((places.console, CONSOLE_BYTES), (places.log, LOG_BYTES), (places.metrics, LOG_BYTES)):
        keep_tail(path, max_bytes=max_bytes)


def _last_end(places: Places) -> End:
    """How the VM's last VMM ended. It may have been started before the host was, or have never been written down."""
    proc = vmm.read_proc(places)
    if proc is None:
        return "unknown"
    return end_of(places.metrics) if proc.boot_id == process.boot_id() else "rebooted"

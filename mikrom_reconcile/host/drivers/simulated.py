"""MicroVMs that go through the motions: for machines without KVM, for scale, and for rehearsing what goes wrong.

A VM is one file, `sim/<vm>.json`, so it outlives whoever started it, as a real one does. It obeys the boot
arguments of the demo guest (`mikrom.mode=`), and what would take time follows from the clock: nothing here runs,
and nothing waits. The file is replaced as a whole under the caller's action lock, so there are never two.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Container
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import Console, End, Stray, VMMFacts, VMMStatus
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.specs import validate_vms
from mikrom_reconcile.host.drivers.translate_errors import step
from mikrom_reconcile.host.ports import LinkDrift, VMRecord
from mikrom_reconcile.limits import VMMS
from mikrom_reconcile.system import processes
from mikrom_reconcile.system.files import OddFileError, read_small, write_whole
from mikrom_reconcile.system.folders import make_folder

FIRST_PID = 1 << 22
"""Linux gives out no pid from here on, so that a simulated one can never be signalled."""

_MODE = "mikrom.mode="
_DEAF = frozenset({"ignore", "spin", "flood"})
_LAST_WORDS = {"exit": "MIKROM-EXIT bye\n", "crash": "MIKROM-CRASH\n", "clean": "MIKROM-CAD bye\n"}


class SimulatedVM(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds. `started_s` counts from the boot of the host; `end` is None until somebody ended it.
    `console_cut` bytes of the console are gone from its beginning, and this VM's own begins at `console_at`.
    """

    uid: str
    pid: int
    boot_id: str
    started_s: float
    machine: Machine
    boot_args: str
    console: str
    console_cut: int = 0
    console_at: int = 0
    hangs: bool = False
    paused: bool = False
    end: End | None = None


class SimulatedDriver:
    """The driver that starts nothing. `boot_s` is how long a start takes."""

    name = "simulated"

    def __init__(self, state_dir: Path, *, boot_s: float = 0.0) -> None:
        self._folder = state_dir / "sim"
        self._boot_s = boot_s

    def memory_mib(self, spec: VMSpec) -> int:  # noqa: ARG002 - the port's
        """Nothing: no guest runs."""
        return 0

    def unsupported(self, spec: VMSpec) -> str | None:
        """Why no driver can run `spec`."""
        return validate_vms.unsupported(spec)

    def observe(self, record: VMRecord) -> VMMFacts:
        """What the file and the clock say."""
        vm = self._read(record.vm)
        if vm is None:
            return VMMFacts(status="none")
        if (end := _end_of(vm)) is not None:
            return VMMFacts(status="none", end=end)
        if vm.hangs:
            return VMMFacts(status="unresponsive", pid=vm.pid, age_s=_age_s(vm))
        status: VMMStatus = "paused" if vm.paused else "running"
        return VMMFacts(
            status=status,
            pid=vm.pid,
            age_s=_age_s(vm),
            machine=vm.machine,
            boot_args=vm.boot_args,
            console_at=vm.console_at,
        )

    def links(self, but: str = "") -> LinkDrift:  # noqa: ARG002 - the port's
        """Nothing is made."""
        return lambda _record: ()

    def watch(self, record: VMRecord) -> int | None:  # noqa: ARG002 - the port's
        """Nothing: no process ends here."""
        return None

    def start(self, record: VMRecord, *, deadline_s: float) -> None:
        """Write the file, unless this very VM runs."""
        if (problem := self.unsupported(record.spec)) is not None:
            raise PermanentError(problem, vm=record.vm, step="checking its spec")
        before = self._read(record.vm)
        if before is not None and before.uid == record.uid and _end_of(before) is None and not before.hangs:
            return
        time.sleep(min(self._boot_s, deadline_s))
        boot_args = record.spec.boot_args
        earlier = _console_of(before) if before is not None else ""
        said = f"{earlier}MIKROM-UP {boot_args}\n"
        kept = said[-VMMS.simulated_console_characters :]
        cut = len(said.encode()) - len(kept.encode()) + (before.console_cut if before is not None else 0)
        self._write(
            record.vm,
            SimulatedVM(
                uid=record.uid,
                pid=FIRST_PID + secrets.randbelow(1 << 30),
                boot_id=processes.boot_id(),
                started_s=_now_s(),
                machine=record.spec.machine,
                boot_args=boot_args,
                console=kept,
                console_cut=cut,
                console_at=len(earlier.encode()) + (before.console_cut if before is not None else 0),
            ),
        )

    def pause(self, record: VMRecord, *, deadline_s: float) -> None:  # noqa: ARG002 - nothing here takes time
        """Note that it is paused. Time goes on all the same for `mikrom.mode=exit`."""
        self._set_paused(record, "pausing its guest", paused=True)

    def resume(self, record: VMRecord, *, deadline_s: float) -> None:  # noqa: ARG002 - nothing here takes time
        """Note that it is not."""
        self._set_paused(record, "resuming its guest", paused=False)

    def update(self, record: VMRecord, *, deadline_s: float) -> None:
        """Nothing: what changes live is not simulated."""

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        """A guest that listens leaves at once; a deaf one is killed, without waiting for what never comes."""
        vm = self._read(record.vm)
        if vm is None or _end_of(vm) is not None:
            return
        listens = grace_s > 0 and not vm.hangs and _mode_of(vm.boot_args)[0] not in _DEAF
        self._end(record.vm, "clean" if listens else "killed")

    def delete(self, record: VMRecord) -> None:
        """Remove the file."""
        path = self._path(record.vm)
        with step(record.vm, "removing its file"):
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".new").unlink(missing_ok=True)

    def strays(self, known: Container[str]) -> tuple[Stray, ...]:
        """Simulated VMs that run without a record."""
        names = sorted(path.stem for path in self._folder.glob("*.json"))
        files = ((name, self._read(name)) for name in names if name not in known)
        return tuple(Stray(vm=name, pid=vm.pid) for name, vm in files if vm is not None and _end_of(vm) is None)

    def foreign(self) -> tuple[Stray, ...]:
        """Nobody else simulates here."""
        return ()

    def trim(self) -> None:
        """Nothing to do: a console is cut when something is added to it."""

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        """What the demo guest would have written."""
        found = self._read(vm)
        if found is None:
            return Console()
        said = _console_of(found).encode()
        end = found.console_cut + len(said)
        new = min(len(said), end - after) if after is not None and after <= end else len(said)
        return Console(content=said[len(said) - min(new, max_bytes) :], end=end)

    def kill(self, vm: str) -> None:
        """Rehearse that somebody kills the VMM."""
        self._end(vm, "killed")

    def crash(self, vm: str) -> None:
        """Rehearse that the guest crashes."""
        self._end(vm, "crashed")

    def hang(self, vm: str) -> None:
        """Rehearse that the VMM stops answering, until it is killed."""
        if (found := self._read(vm)) is not None:
            self._write(vm, msgspec.structs.replace(found, hangs=True))

    def _set_paused(self, record: VMRecord, doing: str, *, paused: bool) -> None:
        vm = self._read(record.vm)
        if vm is None or _end_of(vm) is not None:
            raise TemporaryError("no VMM of it lives any more", vm=record.vm, step=doing)
        if vm.hangs:
            raise TemporaryError("its VMM does not answer", vm=record.vm, step=doing)
        if vm.paused != paused:
            self._write(record.vm, msgspec.structs.replace(vm, paused=paused))

    def _end(self, vm: str, end: End) -> None:
        found = self._read(vm)
        if found is not None and _end_of(found) is None:
            said = found.console + (_LAST_WORDS["clean"] if end == "clean" else "")
            self._write(vm, msgspec.structs.replace(found, end=end, console=said))

    def _path(self, vm: str) -> Path:
        return self._folder / f"{vm}.json"

    def _read(self, vm: str) -> SimulatedVM | None:
        """The VM's file; None when there is none, or none that can be read: then its VM never was."""
        with step(vm, "reading its file"):
            try:
                content = read_small(self._path(vm), max_bytes=1 << 20)
                return None if content is None else msgspec.json.decode(content, type=ready(SimulatedVM))
            except (OddFileError, msgspec.MsgspecError, UnicodeDecodeError):
                return None

    def _write(self, vm: str, content: SimulatedVM) -> None:
        with step(vm, "writing its file"):
            make_folder(self._folder)
            write_whole(self._path(vm), msgspec.json.encode(content), durable=False)


def _mode_of(boot_args: str) -> tuple[str, float]:
    """The demo guest's mode and its seconds: the last whole word `mikrom.mode=` counts, an unknown one does not."""
    words = [word.removeprefix(_MODE) for word in boot_args.split(" ") if word.startswith(_MODE)]
    mode, _, argument = (words or [""])[-1].partition(":")
    if mode in _DEAF and not argument:
        return mode, 0.0
    if mode in {"exit", "crash"} and argument.isdecimal():
        return mode, int(argument) / 1000
    return "", 0.0


def _end_of(vm: SimulatedVM) -> End | None:
    """How the VM has ended by now, None while it runs."""
    if vm.end is not None:
        return vm.end
    if vm.boot_id != processes.boot_id():
        return "rebooted"
    mode, seconds = _mode_of(vm.boot_args)
    if mode not in {"exit", "crash"} or vm.hangs or _age_s(vm) < seconds:
        return None
    return "clean" if mode == "exit" else "crashed"


def _console_of(vm: SimulatedVM) -> str:
    mode, _ = _mode_of(vm.boot_args)
    ended_itself = vm.end is None and _end_of(vm) in {"clean", "crashed"}
    return vm.console + (_LAST_WORDS[mode] if ended_itself else "")


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _age_s(vm: SimulatedVM) -> float:
    return max(0.0, _now_s() - vm.started_s)

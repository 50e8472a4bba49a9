"""MicroVMs that go through the motions: for machines without KVM, for scale, and for rehearsing what goes wrong. A VM
is one file, `sim/<vm>.json`, so it outlives whoever started it, as a real one does. It obeys the boot arguments of the
demo guest (`mikrom.mode=`), and what would take time follows from the clock: nothing here runs, and nothing waits. The
file is replaced as a whole under the caller's action lock, so there are never two.
"""

import secrets
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Machine, VMSpec
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import Console, Drift, End, Stray, VMMFacts
from mikrom_reconcile.core.specs import validate_vms
from mikrom_reconcile.host.errors import translate_errors
from mikrom_reconcile.host.ports import Driver, VMRecord, compared_fields, drift_in
from mikrom_reconcile.system import processes
from mikrom_reconcile.system.files import make_folder, read_json, write_whole
from mikrom_reconcile.times_and_sizes import VMMS

FIRST_PID = 1 << 22  # Linux gives out no pid from here on, so that a simulated one can never be signalled

_MODE = "mikrom.mode="
_DEAF = frozenset({"ignore", "spin", "flood"})
_LAST_WORDS = {"exit": "MIKROM-EXIT bye\n", "crash": "MIKROM-CRASH\n", "clean": "MIKROM-CAD bye\n"}


class SimulatedVM(msgspec.Struct, frozen=True, kw_only=True):
    """What the file holds. `started_s` counts from the boot of the host; `end` is None until somebody ended it. What
    this VM said begins at `console_at`. `kept` says that its memory is on disk: however it ends then, it is suspended.
    """

    uid: str
    pid: int
    boot_id: str
    started_s: float
    machine: Machine
    boot_args: str
    console: str
    console_at: int = 0
    paused: bool = False
    kept: bool = False
    end: End | None = None

    def age_s(self) -> float:
        """How long ago it was started."""
        return max(0.0, _now_s() - self.started_s)

    def ended(self) -> End | None:
        """How it has ended by now, None while it runs."""
        end = self.end or ("rebooted" if self.boot_id != processes.boot_id() else None)
        if end is not None:
            return "suspended" if self.kept else end
        mode, seconds = self.mode()
        if mode not in {"exit", "crash"} or self.age_s() < seconds:
            return None
        return "clean" if mode == "exit" else "crashed"

    def mode(self) -> tuple[str, float]:
        """The demo guest's mode and its seconds: the last word `mikrom.mode=` counts, an unknown one does not."""
        words = [word.removeprefix(_MODE) for word in self.boot_args.split(" ") if word.startswith(_MODE)]
        mode, _, argument = (words or [""])[-1].partition(":")
        if mode in _DEAF and not argument:
            return mode, 0.0
        if mode in {"exit", "crash"} and argument.isdecimal():
            return mode, int(argument) / 1000
        return "", 0.0

    def said(self) -> str:
        """Its console, with the last words of a guest that ended by itself."""
        ended_itself = self.end is None and self.ended() in {"clean", "crashed"}
        return self.console + (_LAST_WORDS[self.mode()[0]] if ended_itself else "")


class SimulatedDriver(Driver):
    """The driver that starts nothing."""

    name = "simulated"
    suspends = True

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "sim"

    def memory_mib(self, spec: VMSpec) -> int:  # noqa: ARG002 - the port's
        return 0  # no guest runs

    def unsupported(self, spec: VMSpec) -> str | None:
        return validate_vms.unsupported(spec)

    def observe(self, record: VMRecord) -> VMMFacts:
        vm = self._read(record.home)
        if vm is None:  # never started, or lost in a power cut
            is_known = record.boot_id in {"", processes.boot_id()}
            return VMMFacts(status="none", end="unknown" if is_known else "rebooted")
        if (end := vm.ended()) is not None:
            return VMMFacts(status="none", end=end)
        return VMMFacts(
            status="paused" if vm.paused else "running",
            pid=vm.pid,
            age_s=vm.age_s(),
            drift=drift_of(record.spec, vm.machine, vm.boot_args),
            console_at=vm.console_at,
        )

    def start(self, record: VMRecord, *, deadline_s: float) -> str:  # noqa: ARG002 - the port's
        """Write the file, unless this very VM runs; one that was suspended under the same spec only gets a new pid."""
        if (problem := self.unsupported(record.spec)) is not None:
            raise PermanentError(problem, vm=record.vm, step="checking its spec")
        before = self._read(record.home)
        if before is not None and before.uid == record.uid and before.ended() is None:
            return ""
        boot_args, note, pid = record.spec.boot_args, "", FIRST_PID + secrets.randbelow(1 << 30)
        if before is not None and before.ended() == "suspended":
            if (before.uid, before.machine, before.boot_args) == (record.uid, record.spec.machine, boot_args):
                again = {"pid": pid, "boot_id": processes.boot_id(), "started_s": _now_s()}
                self._write(record.home, replace(before, **again, paused=False, kept=False, end=None))
                return "it went on from its memory"
            note = "a cold boot, its memory is lost: its spec has changed"
        earlier = before.said() if before is not None else ""
        if len(earlier) > VMMS.simulated_console_characters:
            earlier = ""
        vm = SimulatedVM(
            uid=record.uid,
            pid=pid,
            boot_id=processes.boot_id(),
            started_s=_now_s(),
            machine=record.spec.machine,
            boot_args=boot_args,
            console=f"{earlier}MIKROM-UP {boot_args}\n",
            console_at=len(earlier.encode()),
        )
        self._write(record.home, vm)
        return note

    def set_paused(self, record: VMRecord, *, paused: bool, deadline_s: float) -> None:  # noqa: ARG002 - the port's
        """Note whether it is paused. Time goes on all the same for `mikrom.mode=exit`."""
        vm, doing = self._read(record.home), "pausing its guest" if paused else "resuming its guest"
        if vm is None or vm.ended() is not None:
            raise TemporaryError("no VMM of it lives any more", vm=record.vm, step=doing)
        if vm.paused != paused:
            self.change(record.home, paused=paused, kept=vm.kept and paused)

    def suspend(self, record: VMRecord, *, deadline_s: float) -> None:
        """Note that its memory is kept."""
        vm = self._read(record.home)
        if vm is not None and vm.ended() is None:
            self.set_paused(record, paused=True, deadline_s=deadline_s)
            self.change(record.home, kept=True)

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        """A guest that listens leaves at once; a deaf one is killed, without waiting for what never comes."""
        vm = self._read(record.home)
        if vm is None:
            return
        if vm.kept and (record.state in {"stopped", "absent"} or (grace_s > 0 and vm.ended() is None)):
            vm = replace(vm, kept=False)
            self._write(record.home, vm)
        if vm.ended() is not None:
            return
        if grace_s > 0 and vm.mode()[0] not in _DEAF:
            self.change(record.home, end="clean", console=vm.console + _LAST_WORDS["clean"])
        else:
            self.change(record.home, end="killed")

    def delete(self, record: VMRecord) -> None:
        path = self._path(record.home)
        with translate_errors(record.vm, "removing its file"):
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".new").unlink(missing_ok=True)

    def strays(self, known: Container[str]) -> tuple[Stray, ...]:
        names = sorted(path.stem for path in self._folder.glob("*.json"))
        files = ((name, self._read(name)) for name in names if name not in known)
        return tuple(Stray(vm=name, pid=vm.pid) for name, vm in files if vm is not None and vm.ended() is None)

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        found = self._read(vm)
        said = found.said().encode() if found else b""
        begin = max(0, len(said) - max_bytes, after if after is not None and after <= len(said) else 0)
        return Console(content=said[begin:], end=len(said))

    def change(self, vm: str, **changes: Any) -> None:
        """Rehearse what goes wrong: fields of SimulatedVM, such as `end="killed"`, of one that runs."""
        found = self._read(vm)
        if found is not None and found.ended() is None:
            self._write(vm, replace(found, **changes))

    def _path(self, vm: str) -> Path:
        return self._folder / f"{vm}.json"

    def _read(self, vm: str) -> SimulatedVM | None:
        """The VM's file; None when there is none, or none that can be read: then its VM never was."""
        with translate_errors(vm, "reading its file"):
            return read_json(self._path(vm), SimulatedVM, max_bytes=1 << 20)

    def _write(self, vm: str, content: SimulatedVM) -> None:
        with translate_errors(vm, "writing its file"):
            make_folder(self._folder)
            write_whole(self._path(vm), msgspec.json.encode(content), durable=False)


def drift_of(spec: VMSpec, machine: Machine, boot_args: str) -> tuple[Drift, ...]:
    """Where what was started differs from a spec."""
    return drift_in((*compared_fields("machine", spec.machine, machine), ("boot_args", spec.boot_args, boot_args)))


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)

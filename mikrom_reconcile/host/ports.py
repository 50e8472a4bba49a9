"""What the host side needs from outside, and the record that all of it shares."""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Protocol

import msgspec

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.errors import PermanentError
from mikrom_reconcile.core.model.observed import Applied, Before, Console, Described, Drift, Stray, VMMFacts


class VMRecord(Applied, frozen=True, kw_only=True):
    """What a host keeps about one of its VMs, written before anything is done to it.

    The state "absent" says that a delete is under way. `generation` survives deletion in a tombstone. `action_id` is
    the last order, so that its duplicate is known; `crash_loop` says that the host has given up its restarts. Nobody
    else may have its addresses while the record is there. `damage` says what happened to a record that was read from
    its copy; it is never written. `made_as` is the name that a VM had which was renamed: what runs cannot be.
    `before` is kept for rollouts that go back. `boot_id` is that of the host when this was written.
    """

    vm: str
    action_id: str
    crash_loop: bool = False
    damage: str = ""
    made_as: str = ""
    before: Before | None = None
    boot_id: str = ""

    @property
    def home(self) -> str:
        """The name that its files, its links and its jail have on this host."""
        return self.made_as or self.vm


LinkDrift = Callable[[VMRecord], tuple[Drift, ...]]
"""Where the taps, bridges and rules of a VM that is up differ from what its record wants."""

Compared = tuple[str, int | str | None, int | str | None]  # a path, what is recorded there, and what there is


def drift_in(compared: Iterable[Compared]) -> tuple[Drift, ...]:
    """What differs of what was compared."""
    differing = (row for row in compared if row[1] != row[2])
    return tuple(Drift(path=path, recorded=recorded, actual=actual) for path, recorded, actual in differing)


def compared_fields(path: str, recorded: msgspec.Struct, actual: msgspec.Struct) -> Iterator[Compared]:
    """Each field of two structs of one kind."""
    return ((f"{path}.{name}", getattr(recorded, name), getattr(actual, name)) for name in recorded.__struct_fields__)


class Driver(Protocol):
    """One kind of VMM; what it does not have, it leaves as it is here. Methods block their thread or greenlet, never
    the process, and hold no lock of their own beyond the VMM's; the caller holds the VM's action lock for all but
    `observe`, `strays` and `console`. Errors are `TemporaryError` or `PermanentError` with the step in words.
    """

    name: str
    suspends: bool = False  # whether it has `suspend`

    def memory_mib(self, spec: VMSpec) -> int:
        """What a VM of that spec may take of this host's memory, its VMM included."""

    def unsupported(self, spec: VMSpec) -> str | None:
        """Why this driver cannot run `spec`, or None."""

    def observe(self, record: VMRecord) -> VMMFacts:
        """What is provably there now. Never changes anything and never raises for a broken VMM. An ActionError says
        that this process cannot look (no descriptor left, folder closed): the VM is unknown.
        """

    def links(self, but: str = "") -> LinkDrift:  # noqa: ARG002
        """Compares what this host made for VMs beside their VMMs; one for many VMs costs less. ActionErrors as above.
        `but` names a VM whose record does not say yet what is wanted for it.
        """
        return lambda _record: ()

    def watch(self, record: VMRecord) -> int | None:  # noqa: ARG002
        """A descriptor that is readable once the VM's VMM has ended; the caller closes it. None: no VMM lives, or this
        kind of VMM cannot be waited for. ActionErrors as of `observe`.
        """
        return None

    def start(self, record: VMRecord, *, deadline_s: float) -> str:
        """Boot the VM as `record.spec` says, or let a suspended one go on, and return once its guest runs. The answer
        is what has to be said of that: that it went on, or why it could not and was booted. A proven half-started VMM
        of this VM is ended first; a running or paused one is left as it is. On failure no VMM is left behind, and the
        error says so.
        """

    def set_paused(self, record: VMRecord, *, paused: bool, deadline_s: float) -> None:
        """Stop the vCPUs of a VM that is up, or let them go on, unless that is so. Its VMM, memory and disks stay."""

    def suspend(self, record: VMRecord, *, deadline_s: float) -> None:  # noqa: ARG002
        """Write the memory of a VM that is up to disk and leave its guest standing still, to be ended by `stop`. It
        goes on from there once, at a `start` under the same spec; any other way to let it run forgets the memory. On
        failure the guest goes on, and nothing is left on disk. Only a driver that `suspends` is asked to.
        """
        raise PermanentError(f"{self.name} suspends no VM", vm=record.vm, step="writing its memory to disk")

    def update(self, record: VMRecord, *, deadline_s: float) -> None:  # noqa: ARG002
        """Bring a running VMM to `record.spec` in all that changes live (`fields.py`), and leave the rest alone. Of a
        VM that is to be down only links change.
        """
        return

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        """Ctrl-Alt-Del, wait `grace_s`, kill; return once no VMM lives. Without a VMM it does nothing. A memory on disk
        is forgotten where the record says stopped or absent. A paused guest is resumed first: it can hear nothing, and
        its disks deserve an orderly end too.
        """

    def delete(self, record: VMRecord) -> None:
        """Remove everything this driver made for the VM. The VMM is gone already, or is killed."""

    def strays(self, known: Container[str]) -> tuple[Stray, ...]:
        """VMMs of ours for which `known` holds no VM name."""

    def described(self, socket: str) -> Described:  # noqa: ARG002
        """What somebody started by hand and that has this API socket. Only looks at it, and never raises."""
        return Described(problem=f"its driver, {self.name}, takes over nothing that was started by hand")

    def adopt(self, record: VMRecord, socket: str, judge: Callable[[VMMFacts], None], *, deadline_s: float) -> None:
        """Have what runs at this socket as the VM's VMM, if `judge` does not raise and a restart can bring it back."""
        del judge, deadline_s
        raise PermanentError(self.described(socket).problem, vm=record.vm, step="taking it over")

    def foreign(self) -> tuple[Stray, ...]:
        """VMMs of the same kind on this machine that are not ours. Only looks at them."""
        return ()

    def trim(self) -> None:
        """Cap what VMMs write: called every few seconds where something lives that long, observing does it too."""
        return

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        """The last `max_bytes` of the guest's serial console, or of what came `after` that place in it."""

"""What this host keeps about its VMs, and the locks under which that changes.

    vms/<vm>/record.json        the record; drivers keep their files beside it
    names/<vm>                  a link that says which folder a VM has instead that was renamed
    copies/<vm>.json            the same once more: what is read when somebody has edited or deleted the record
    tombstones/<vm>.json        the record of a deleted VM, so that its name's generation goes on
    attempts/<vm>.json          that a VM could not be made here; gone once it has a record
    checks/<vm>.json            what came of its checks (`checks.py`)
    proofs/<vm>.json            that it was healthy with the spec that it has (`checks.py`)
    tokens/<project>/<token>    the highest tokens seen, outside the VM folders so that they survive the last VM
    released/<project>/<ip>     an address whose VM is gone; when, says the file's time
    locks/actions               of which whoever acts on a VM holds the byte of its name
    locks/worker                held by the one host worker with this state folder

A record that cannot be read is an `UnreadableRecord` and says why: never an exception, and never taken for absent. A
VM's folder without a record is no VM but what a killed writer left; the next write, removal or sweep cleans it.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.errors import SetupError, TemporaryError
from mikrom_reconcile.core.model.observed import Attempt
from mikrom_reconcile.host.json_folder import JsonFolder, checked_name, is_name, listed
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.files import FULL, OddFileError, make_folder, sync_folder
from mikrom_reconcile.system.processes import boot_id
from mikrom_reconcile.times_and_sizes import RECORDS


class UnreadableRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A VM whose record is there and cannot be read. It may well be running; nobody may act on it."""

    vm: str
    reason: str


class Records:
    """The records of one host. Any number of threads, greenlets and processes may share its folder."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._records = JsonFolder(state_dir / "vms", VMRecord, file="{}/record.json")
        self._copies = JsonFolder(state_dir / "copies", VMRecord, durable=False)
        self._tombstones = JsonFolder(state_dir / "tombstones", VMRecord)
        self._attempts = JsonFolder(state_dir / "attempts", Attempt)
        self._tokens, self._released = state_dir / "tokens", state_dir / "released"
        self._locks, self._names = state_dir / "locks", state_dir / "names"
        self._seen: os.stat_result | None = None

    @contextmanager
    def lock(self, vm: str) -> Iterator[None]:
        """Hold the VM's action lock inside the block. Raises TemporaryError at once when somebody else does."""
        self._check_place()
        step = "taking its action lock"
        path = self._locks / "actions"
        try:
            fd = locks.open_taken(path, checked_name(vm))
        except OSError as error:
            raise TemporaryError(f"cannot lock {path}: {error.strerror}", vm=vm, step=step) from error
        if fd is None:
            raise TemporaryError("another order is at work on it; try again when that is done", vm=vm, step=step)
        try:
            yield
        finally:
            locks.give_back(fd)

    def _check_place(self) -> None:
        """Raise SetupError once the state folder is another one than it was, or none: VMMs may run that it knows."""
        seen = self._seen  # before looking: another thread may make the folder in between
        try:
            found = os.stat(self.state_dir)  # noqa: PTH116 - for every action
        except OSError:
            found = None
        if seen is None:
            self._seen = self._seen or found
        elif not (found and os.path.samestat(seen, found)):
            message = f"{self.state_dir} was moved away or replaced under this process, which does nothing until it is"
            raise SetupError(f"{message} back; if that is to be, start it again")

    def read(self, vm: str) -> VMRecord | UnreadableRecord | None:
        """The VM's record, why it cannot be read, or None when there is none."""
        found = self.at(self.home_of(vm))
        if isinstance(found, UnreadableRecord):
            return msgspec.structs.replace(found, vm=vm)
        return None if found is None or found.vm != vm else found

    def at(self, home: str) -> VMRecord | UnreadableRecord | None:
        """The record in the folder of this name, as `read` has it. One that somebody deleted or damaged is read from
        its copy, and says so in `damage`.
        """
        found = _read(self._records, home)
        if isinstance(found, UnreadableRecord):
            found = _read(self._records, home)  # it may just have been written over
        if isinstance(found, VMRecord):
            return found
        kept = _read(self._copies, home)
        if not isinstance(kept, VMRecord):
            return found
        return msgspec.structs.replace(kept, damage=found.reason if found else f"{self._records.path(home)} is gone")

    def home_of(self, vm: str) -> str:
        """The name of the VM's folder: its own, unless it was renamed."""
        try:
            home = os.readlink(f"{self._names}/{checked_name(vm)}")  # noqa: PTH115 - for every action
        except OSError:
            return vm
        return home if is_name(home) else vm

    def new_home(self, vm: str) -> str:
        """What a new VM's files are to be called if its own name is that of another's; "" if it is free."""
        return f"{vm[:39]}-{secrets.token_hex(4)}" if self.at(vm) is not None else ""

    def homes(self) -> set[str]:
        """The names of all folders that may have a record. Raises SetupError when they cannot be read."""
        self._check_place()
        return self._records.names() | self._copies.names()

    def names(self) -> tuple[str, ...]:
        """Every VM that may have a record, sorted. Raises SetupError when their folder cannot be read."""
        return tuple(sorted({*self.homes(), *filter(is_name, listed(self._names))}))

    def list(self) -> Iterator[VMRecord | UnreadableRecord]:
        """Every record of this host, sorted by folder. Raises SetupError when their folder cannot be read."""
        named = {self.home_of(name): name for name in listed(self._names) if is_name(name)}
        for home in sorted(self.homes()):
            found = self.at(home)
            if isinstance(found, UnreadableRecord):
                found = msgspec.structs.replace(found, vm=named.get(home, home))
            elif found is not None and found.made_as:
                with suppress(OSError):  # somebody may have removed the link
                    self._link(found)
            if found is not None:
                yield found

    def write(self, record: VMRecord, *, or_before: bool = False) -> None:
        """Replace the VM's record. The caller holds the action lock. Raises TemporaryError, changing nothing. With
        `or_before` a power cut may bring back what it was before.
        """
        vm, path = record.vm, self._records.path(record.home)
        record = msgspec.structs.replace(record, damage="", boot_id=boot_id())
        try:
            if is_new := not path.exists():
                self._make_room_to_remove(record)
            self._link(record)
            self._records.write(record.home, record, or_before=or_before)
            self._keep_copy(record)
            if is_new:
                sync_folder(self._records.folder)
                self._attempts.remove(vm)
        except OSError as error:
            with suppress(OSError):
                path.parent.rmdir()  # only if it is empty: made just now, or left by a killed writer
            message = f"cannot write {path}: {error.strerror}; nothing was changed"
            raise TemporaryError(message, vm=vm, step="writing its record") from error

    def rename(self, record: VMRecord, before: str) -> None:
        """Write the record of a VM that was called so `before`; what was noted of its health goes with it."""
        for beside in ("checks", "proofs"):
            with suppress(OSError):  # none, or it went before somebody was killed here
                (self.state_dir / beside / f"{before}.json").replace(self.state_dir / beside / f"{record.vm}.json")
        self.write(record)
        with suppress(OSError):  # a link that leads to no VM is in nobody's way
            (self._names / before).unlink()

    def _link(self, record: VMRecord) -> None:
        """Let the VM be found by its name. Until its record has that name, too, the link leads to none."""
        if self.home_of(record.vm) == record.home:
            return
        link = self._names / record.vm
        link.unlink(missing_ok=True)
        if record.made_as:
            make_folder(self._names)
            link.symlink_to(record.made_as)
            sync_folder(self._names)

    def _keep_copy(self, record: VMRecord) -> None:
        """Not durable, so that nobody waits for it. An old copy is worse than none."""
        try:
            self._copies.write(record.home, record)
        except OSError:
            with suppress(OSError):
                self._copies.remove(record.home)

    def remove(self, record: VMRecord) -> None:
        """Turn the record into a tombstone. The caller holds the action lock. Raises TemporaryError. The record itself
        becomes the tombstone, which needs no room. Its copy goes first: it would bring it back.
        """
        vm, path = record.vm, self._records.path(record.home)
        try:
            self._make_room_to_remove(record)
            self._copies.remove(record.home)
            for ip in record.addresses.values():  # before anybody can miss the record
                (self._released / checked_name(record.project) / ip).touch(0o600)
            try:
                path.rename(self._tombstones.path(vm))
                sync_folder(self._tombstones.folder)
            except OSError:  # it was read from its copy, or lies on another disk
                self._tombstones.write(vm, record)
                self._records.remove(record.home)
            (self._names / vm).unlink(missing_ok=True)
            self.clear(record.home)
            for beside in ("checks", "proofs"):
                (self.state_dir / beside / f"{vm}.json").unlink(missing_ok=True)
            sync_folder(self._records.folder)
        except OSError as error:
            raise TemporaryError(
                f"cannot remove {path}: {error.strerror}", vm=vm, step="removing its record"
            ) from error
        if secrets.randbelow(RECORDS.removals_per_sweep) == 0:
            self._sweep_old()

    def released(self, project: str) -> dict[str, float]:
        """Addresses of VMs that are gone, with the seconds since then. Those of yesterday are forgotten."""
        folder, found = self._released / checked_name(project), {}
        for ip in listed(folder):
            with suppress(OSError):
                if (age_s := max(0.0, time.time() - (folder / ip).stat().st_mtime)) > RECORDS.released_address_s:
                    (folder / ip).unlink()
                else:
                    found[ip] = age_s
        return found

    def _make_room_to_remove(self, record: VMRecord) -> None:
        """Make the folders that a removal needs while the disk has room."""
        make_folder(self._tombstones.folder)
        if record.addresses:
            make_folder(self._released / checked_name(record.project))

    def clear(self, vm: str) -> None:
        """Remove what a killed writer left of a VM that has no record. Files of others stay, and so its folder."""
        path = self._records.path(vm)
        path.with_name(path.name + ".new").unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()

    def sweep(self) -> None:
        """Clear every VM's folder and lock files that a killed writer left without a record. Raises SetupError. Each is
        locked for a moment, in which an order for that VM would find it busy: so before orders, not beside.
        """
        for vm in self._records.names():
            if not self._records.path(vm).exists():
                with suppress(TemporaryError, OSError), self.lock(vm):
                    if not self._records.path(vm).exists():
                        self.clear(vm)
        for name in listed(self._locks):
            vm, _, kind = name.partition(".")
            if kind in {"action", "vmm"} and is_name(vm) and self.read(vm) is None and self.at(vm) is None:
                with suppress(OSError), locks.held(self._locks / name, unlink=True):
                    pass  # it goes, unless somebody holds it

    def tombstone(self, vm: str) -> VMRecord | None:
        """The record of the last VM of this name. None, too, when it is damaged: a new uid tells two lives apart."""
        with suppress(OddFileError):
            return self._tombstones.read(vm)
        return None

    def note_attempt(self, vm: str, attempt: Attempt) -> None:
        """Remember that a VM which has no record could not be made. Raises TemporaryError."""
        try:
            self._attempts.write(vm, attempt)
        except OSError as error:
            message = f"cannot write {self._attempts.path(vm)}: {error.strerror}"
            raise TemporaryError(message, vm=vm, step="noting the attempt") from error

    def attempt(self, vm: str) -> Attempt | None:
        """The attempt to make this VM, which has no record. One that cannot be read does not count."""
        with suppress(OddFileError):
            return self._attempts.read(vm)
        return None

    def attempts(self) -> dict[str, Attempt]:
        """The attempts to make VMs that have no record."""
        found = ((vm, self.attempt(vm)) for vm in sorted(self._attempts.names()))
        return {vm: attempt for vm, attempt in found if attempt is not None}

    def highest_token(self, project: str) -> int:
        """The highest token that this host has seen of a project, 0 if none. Raises SetupError."""
        return max(self._tokens_of(project), default=0)

    def highest_tokens(self) -> dict[str, int]:
        """The highest token of every project. Raises SetupError."""
        return {name: self.highest_token(name) for name in listed(self._tokens) if is_name(name)}

    def advance_token(self, project: str, token: int) -> None:
        """Remember a token that is higher than those seen before. Raises OSError. Each token is an empty file of its
        own, so that nobody needs a lock: whoever comes late with a lower one takes nothing back.
        """
        folder = self._tokens / checked_name(project)
        make_folder(folder)
        seen = sorted(self._tokens_of(project), reverse=True)
        try:
            (folder / str(token)).touch(0o600)
        except OSError as error:
            if error.errno not in FULL or not seen:
                raise
            (folder / str(seen[-1])).rename(folder / str(token))  # a disk that is full of files has room for this one
        sync_folder(folder)
        for old in seen[RECORDS.kept_tokens - 1 :]:
            (folder / str(old)).unlink(missing_ok=True)

    def _tokens_of(self, project: str) -> Iterator[int]:
        return map(int, filter(str.isdigit, listed(self._tokens / checked_name(project))))

    def _sweep_old(self) -> None:
        for folder in (self._tombstones.folder, self._attempts.folder):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - RECORDS.tombstone_s:
                        Path(entry.path).unlink(missing_ok=True)


def _read(folder: JsonFolder[VMRecord], vm: str) -> VMRecord | UnreadableRecord | None:
    try:
        record = folder.read(vm)
    except OddFileError as error:
        return UnreadableRecord(vm=vm, reason=str(error))
    if record is not None and record.home != vm:
        return UnreadableRecord(vm=vm, reason=f"{folder.path(vm)} is the record of {record.vm}, copied or moved here")
    return record

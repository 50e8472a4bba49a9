"""What this host keeps about its VMs, and the locks under which that changes.

    vms/<vm>/record.json        the record; drivers keep their files beside it
    copies/<vm>.json            the same once more: what is read when somebody has edited or deleted the record
    tombstones/<vm>.json        the record of a deleted VM, so that its name's generation goes on
    attempts/<vm>.json          that a VM could not be made here; gone once it has a record
    checks/<vm>.json            what came of its checks (`checks.py`)
    proofs/<vm>.json            that it was healthy with the spec that it has (`trials.py`)
    tokens/<project>/<token>    the highest tokens seen, outside the VM folders so that they survive the last VM
    released/<project>/<ip>     an address whose VM is gone; when, says the file's time
    locks/<vm>.action           held by whoever acts on the VM; goes with its record
    locks/worker                held by the one host worker with this state folder

A record that cannot be read is an `UnreadableRecord` and says why: never an exception, and never taken for absent. A
VM's folder without a record is no VM but what a killed writer left; the next write, removal or sweep cleans it.
"""

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.errors import PermanentError, SetupError, TemporaryError
from mikrom_reconcile.core.model.observed import Attempt
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.files import (
    FULL,
    OddFileError,
    make_folder,
    read_small,
    sync_folder,
    write_whole,
)
from mikrom_reconcile.times_and_sizes import RECORDS

T = TypeVar("T")

_FORMAT_VERSION = 1

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int
    checksum: str = ""  # a newer format may have neither of these
    record: msgspec.Raw = msgspec.Raw(b"null")


class JsonFolder(Generic[T]):
    """Files of one type, each in an envelope with a checksum, so that an edit is noticed.

    `file` is where a VM's file lies in the folder. The caller holds the VM's action lock when it writes, unless the
    folder is `shared`. What is not `durable` may be lost in a power cut, for no waiting.
    """

    def __init__(
        self, folder: Path, kind: type[T], *, file: str = "{}.json", durable: bool = True, shared: bool = False
    ) -> None:
        self.folder = folder
        self.path = lru_cache(RECORDS.cached_paths)(lambda vm: folder / file.format(checked_name(vm)))
        self._kind = kind
        self._durable = durable
        self._shared = shared

    def names(self) -> set[str]:
        """The VMs that may have a file. Raises SetupError."""
        return {name for entry in listed(self.folder) if is_name(name := entry.removesuffix(".json"))}

    def read(self, vm: str) -> T | None:
        """What the VM's file holds, None when there is no file. Raises OddFileError when it cannot be read."""
        path = self.path(vm)
        try:
            content = read_small(path, max_bytes=RECORDS.record_bytes)
            return None if content is None else self._decoded(content, path)
        except OSError as error:
            raise OddFileError(f"{path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise OddFileError(f"{path} is torn or no record: {error}") from error

    def write(self, vm: str, value: T, *, or_before: bool = False) -> None:
        """Replace the VM's file, or raise OSError and change nothing. `or_before`: see `write_whole`."""
        path = self.path(vm)
        record = msgspec.json.encode(value)
        envelope = _Envelope(format_version=_FORMAT_VERSION, checksum=_checksum(record), record=msgspec.Raw(record))
        content = msgspec.json.encode(envelope)
        draft = path.with_name(f"{vm}.{secrets.token_hex(4)}") if self._shared else path
        try:
            write_whole(draft, content, durable=self._durable, or_before=or_before)
        except FileNotFoundError:
            make_folder(path.parent)
            write_whole(draft, content, durable=self._durable, or_before=or_before)
        if draft != path:
            draft.replace(path)

    def remove(self, vm: str) -> None:
        """Remove the VM's file, if it has one. Raises OSError."""
        self.path(vm).unlink(missing_ok=True)

    def _decoded(self, content: bytes, path: Path) -> T:
        envelope = msgspec.json.decode(content, type=ready(_Envelope))
        if (version := envelope.format_version) > _FORMAT_VERSION:
            raise OddFileError(f"{path} has format {version}, written by a newer mikrom: upgrade mikrom on this host")
        if envelope.checksum != _checksum(bytes(envelope.record)):
            raise OddFileError(f"{path} does not match its checksum: it was edited or damaged")
        return msgspec.json.decode(envelope.record, type=ready(self._kind))


def is_name(name: str) -> bool:
    """Whether it may be a VM's or a project's name."""
    return bool(_NAME.fullmatch(name))


def checked_name(name: str) -> str:
    """`name`, if it may be a VM's or a project's and so part of a path. Raises PermanentError."""
    if not is_name(name):
        rule = "up to 48 of a-z, 0-9 and '-', a letter or digit at both ends"
        raise PermanentError(f"no VM or project has such a name: {rule}", vm=repr(name[:60]), step="checking names")
    return name


def listed(folder: Path) -> list[str]:
    """The names in a folder, sorted; none when it does not exist yet. Raises SetupError."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - pathlib makes a Path of each
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetupError(f"cannot read {folder}: {error.strerror}; mend it, what it holds counts as unknown") from error


def _checksum(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


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
        self._tokens = state_dir / "tokens"
        self._released = state_dir / "released"
        self._locks = state_dir / "locks"
        self._seen: os.stat_result | None = None

    @contextmanager
    def lock(self, vm: str) -> Iterator[None]:
        """Hold the VM's action lock inside the block. Raises TemporaryError at once when somebody else does."""
        self._check_place()
        step = "taking its action lock"
        path = self._locks / f"{checked_name(vm)}.action"
        try:
            fd = locks.open_taken(path)
        except OSError as error:
            raise TemporaryError(f"cannot lock {path}: {error.strerror}", vm=vm, step=step) from error
        if fd is None:
            raise TemporaryError("another order is at work on it; try again when that is done", vm=vm, step=step)
        try:
            yield
        finally:
            # of a name that does not come back nothing stays
            locks.give_back(fd, unlink=None if self._records.path(vm).exists() else path)

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
        """The VM's record, why it cannot be read, or None when there is none.

        One that somebody deleted or damaged is read from its copy, and says so in `damage`.
        """
        found = _read(self._records, vm)
        if isinstance(found, VMRecord):
            return found
        kept = _read(self._copies, vm)
        if not isinstance(kept, VMRecord):
            return found
        return msgspec.structs.replace(kept, damage=found.reason if found else f"{self._records.path(vm)} is gone")

    def names(self) -> tuple[str, ...]:
        """Every VM that may have a record, sorted. Raises SetupError when their folder cannot be read."""
        self._check_place()
        return tuple(sorted(self._records.names() | self._copies.names()))

    def list(self) -> Iterator[VMRecord | UnreadableRecord]:
        """Every record of this host, sorted by VM. Raises SetupError when their folder cannot be read."""
        return (found for name in self.names() if (found := self.read(name)) is not None)

    def write(self, record: VMRecord, *, or_before: bool = False) -> None:
        """Replace the VM's record. The caller holds the action lock. Raises TemporaryError, changing nothing.

        With `or_before` a power cut may bring back what it was before.
        """
        vm, path = record.vm, self._records.path(record.vm)
        record = msgspec.structs.replace(record, damage="")
        try:
            if is_new := not path.parent.exists():
                self._make_room_to_remove(record)
            self._records.write(vm, record, or_before=or_before)
            self._keep_copy(record)
            if is_new:
                sync_folder(self._records.folder)
                self._attempts.remove(vm)
        except OSError as error:
            with suppress(OSError):
                path.parent.rmdir()  # only if it is empty: made just now, or left by a killed writer
            message = f"cannot write {path}: {error.strerror}; nothing was changed"
            raise TemporaryError(message, vm=vm, step="writing its record") from error

    def _keep_copy(self, record: VMRecord) -> None:
        """Not durable, so that nobody waits for it. An old copy is worse than none."""
        try:
            self._copies.write(record.vm, record)
        except OSError:
            with suppress(OSError):
                self._copies.remove(record.vm)

    def remove(self, record: VMRecord) -> None:
        """Turn the record into a tombstone. The caller holds the action lock. Raises TemporaryError.

        The record itself becomes the tombstone, which needs no room. Its copy goes first: it would bring it back.
        """
        vm, path = record.vm, self._records.path(record.vm)
        try:
            self._make_room_to_remove(record)
            self._copies.remove(vm)
            for ip in record.addresses.values():  # before anybody can miss the record
                (self._released / checked_name(record.project) / ip).touch(0o600)
            try:
                path.rename(self._tombstones.path(vm))
                sync_folder(self._tombstones.folder)
            except OSError:  # it was read from its copy, or lies on another disk
                self._tombstones.write(vm, record)
                self._records.remove(vm)
            self.clear(vm)
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
        """Clear every VM's folder and lock files that a killed writer left without a record. Raises SetupError.

        Each is locked for a moment, in which an order for that VM would find it busy: so before orders, not beside.
        """
        for vm in self._records.names():
            if not self._records.path(vm).exists():
                with suppress(TemporaryError, OSError), self.lock(vm):
                    if not self._records.path(vm).exists():
                        self.clear(vm)
        for name in listed(self._locks):
            vm, _, kind = name.partition(".")
            if kind in {"action", "vmm"} and is_name(vm) and self.read(vm) is None:
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
        """Remember a token that is higher than those seen before. Raises OSError.

        Each token is an empty file of its own, so that nobody needs a lock: whoever comes late with a lower one
        takes nothing back.
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
    if record is not None and record.vm != vm:
        return UnreadableRecord(vm=vm, reason=f"{folder.path(vm)} is the record of {record.vm}, copied or moved here")
    return record

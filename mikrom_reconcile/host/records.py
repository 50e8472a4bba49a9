"""What this host keeps about its VMs, and the locks under which that changes.

    vms/<vm>/record.json        the record in an envelope with its checksum; drivers keep their files beside it
    copies/<vm>.json            the same once more: what is read when somebody has edited or deleted the record
    tombstones/<vm>.json        what a deleted VM leaves, so that its name's generation goes on
    attempts/<vm>.json          that a VM could not be made here; gone once it has a record
    tokens/<project>/<token>    the highest tokens seen, outside the VM folders so that they survive the last VM
    released/<project>/<ip>     an address whose VM is gone; when, says the file's time
    checks/<vm>.json            what came of its checks (`checks.py`)
    locks/<vm>.action           held by whoever acts on the VM; goes with its record
    locks/worker                held by the one host worker with this state folder

A record that cannot be read is `UnreadableRecord` and says why: never an exception, and never taken for absent. A VM's
folder without a record is no VM but what a killed writer left; the next write, removal or sweep cleans it.
Nothing here knows what a record is for, and nothing else writes one.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.errors import PermanentError, SetupError, TemporaryError
from mikrom_reconcile.core.model.observed import Attempt
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.host.checks import Checks
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.limits import RECORDS
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.files import FULL, OddFileError, SharedFolder, read_small, sync_folder, write_whole
from mikrom_reconcile.system.folders import make_folder

FORMAT_VERSION = 1

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")


class UnreadableRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A VM whose record is there and cannot be read. It may well be running; nobody may act on it."""

    vm: str
    reason: str


class Tombstone(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a deleted VM: its last generation, and the order that deleted it."""

    generation: int
    action_id: str
    token: int


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int
    checksum: str = ""  # a newer format may have neither of these
    record: msgspec.Raw = msgspec.Raw(b"null")


class Records:
    """The records of one host. Any number of threads, greenlets and processes may share its folder."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._vms = state_dir / "vms"
        self._copies = state_dir / "copies"
        self._tombstones = state_dir / "tombstones"
        self._attempts = state_dir / "attempts"
        self._tokens = state_dir / "tokens"
        self._released = state_dir / "released"
        self.checks = Checks(state_dir)
        self._locks = state_dir / "locks"
        self._names = SharedFolder(self._vms)
        self._path = lru_cache(RECORDS.cached_paths)(self._path_of)
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
            locks.give_back(fd, unlink=None if self._path(vm).exists() else path)

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
            message = (
                f"{self.state_dir} was moved away or replaced under this process, which does nothing until it is back"
            )
            raise SetupError(f"{message}; if that is to be, start it again")

    def read(self, vm: str) -> VMRecord | UnreadableRecord | None:
        """The VM's record, why it cannot be read, or None when there is none.

        One that was deleted or damaged behind our back is read from its copy, and says so.
        """
        found = self._read(vm, self._path(vm))
        if isinstance(found, VMRecord):
            return found
        kept = self._read(vm, self._copy_path(vm))
        if not isinstance(kept, VMRecord):
            return found
        return msgspec.structs.replace(kept, damage=found.reason if found else f"{self._path(vm)} is gone")

    def _read(self, vm: str, path: Path) -> VMRecord | UnreadableRecord | None:
        try:
            content = read_small(path, max_bytes=RECORDS.record_bytes)
        except OSError as error:
            return UnreadableRecord(vm=vm, reason=f"{path}: {error.strerror}")
        except OddFileError as error:
            return UnreadableRecord(vm=vm, reason=str(error))
        if content is None:
            return None
        record = _opened(content)
        if isinstance(record, VMRecord) and record.vm != vm:
            record = f"is the record of {record.vm}, copied or moved here"
        return record if isinstance(record, VMRecord) else UnreadableRecord(vm=vm, reason=f"{path} {record}")

    def names(self) -> tuple[str, ...]:
        """Every VM that may have a record, sorted. Raises SetupError when their folder cannot be read."""
        self._check_place()
        names = {*_listed(self._vms), *(name.removesuffix(".json") for name in _listed(self._copies))}
        return tuple(sorted(filter(_NAME.fullmatch, names)))

    def list(self) -> Iterator[VMRecord | UnreadableRecord]:
        """Every record of this host, sorted by VM. Raises SetupError when their folder cannot be read."""
        for name in self.names():
            if (found := self.read(name)) is not None:
                yield found

    def write(self, record: VMRecord, *, or_before: bool = False) -> None:
        """Replace the VM's record. The caller holds the action lock. Raises TemporaryError, changing nothing.

        With `or_before` a power cut may bring back what it was before.
        """
        path = self._path(record.vm)
        try:
            if is_new := not path.parent.exists():
                make_folder(path.parent)
                self._make_room_to_remove(record)
            sealed = _sealed(msgspec.structs.replace(record, damage=""))
            write_whole(path, sealed, or_before=or_before)
            self._keep_copy(record.vm, sealed)
            if is_new:
                self._names.sync()
                self._attempt_path(record.vm).unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                path.parent.rmdir()  # only if it is empty: made just now, or left by a killed writer
            message = f"cannot write {path}: {error.strerror}; nothing was changed"
            raise TemporaryError(message, vm=record.vm, step="writing its record") from error

    def _keep_copy(self, vm: str, sealed: bytes) -> None:
        """Nobody waits for it, and an old one is worse than none."""
        path = self._copy_path(vm)
        try:
            write_whole(path, sealed, durable=False)
        except FileNotFoundError:
            make_folder(self._copies)
            self._keep_copy(vm, sealed)
        except OSError:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def remove(self, record: VMRecord) -> None:
        """Turn the record into a tombstone. The caller holds the action lock. Raises TemporaryError.

        The record itself becomes the tombstone, which needs no room, and is made smaller afterwards. Its copy goes
        first: it would bring the record back.
        """
        path, grave = self._path(record.vm), self._tombstone_path(record.vm)
        try:
            self._make_room_to_remove(record)
            self._copy_path(record.vm).unlink(missing_ok=True)
            self._release(record)
            with suppress(OSError):  # it was read from its copy, or lies on another disk
                path.rename(grave)
            write_whole(grave, msgspec.json.encode(_tombstone_of(record)))
            path.unlink(missing_ok=True)
            self.clear(record.vm)
            self.checks.forget(record.vm)
            self._names.sync()
        except OSError as error:
            message = f"cannot remove {path}: {error.strerror}"
            raise TemporaryError(message, vm=record.vm, step="removing its record") from error
        if secrets.randbelow(RECORDS.removals_per_sweep) == 0:
            self._sweep_old()

    def released(self, project: str) -> dict[str, float]:
        """Addresses of VMs that are gone, with the seconds since then. Those of yesterday are forgotten."""
        folder, found = self._released / checked_name(project), {}
        for ip in _listed(folder):
            with suppress(OSError):
                if (age_s := max(0.0, time.time() - (folder / ip).stat().st_mtime)) > RECORDS.released_address_s:
                    (folder / ip).unlink()
                else:
                    found[ip] = age_s
        return found

    def _make_room_to_remove(self, record: VMRecord) -> None:
        """A folder needs room: those that a removal needs are made while there is some."""
        make_folder(self._tombstones)
        if record.addresses:
            make_folder(self._released / checked_name(record.project))

    def _release(self, record: VMRecord) -> None:
        """Note when the VM's addresses came back, before anybody can miss its record."""
        for ip in record.addresses.values():
            (self._released / checked_name(record.project) / ip).touch(0o600)

    def clear(self, vm: str) -> None:
        """Remove what a killed writer left of a VM that has no record. Files of others stay, and so its folder."""
        path = self._path(vm)
        path.with_name(path.name + ".new").unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()

    def sweep(self) -> None:
        """Clear every VM's folder and lock files that a killed writer left without a record. Raises SetupError.

        Each is locked for a moment, in which an order for that VM would find it busy: so before orders, not beside.
        """
        for vm in _listed(self._vms):
            if _NAME.fullmatch(vm) and not self._path(vm).exists():
                with suppress(TemporaryError, OSError), self.lock(vm):
                    if not self._path(vm).exists():
                        self.clear(vm)
        for name in _listed(self._locks):
            vm, _, kind = name.partition(".")
            if kind in {"action", "vmm"} and _NAME.fullmatch(vm) and self.read(vm) is None:
                with suppress(OSError):
                    if (fd := locks.open_taken(self._locks / name)) is not None:
                        locks.give_back(fd, unlink=self._locks / name)

    def tombstone(self, vm: str) -> Tombstone | None:
        """What the last VM of this name left. None, too, when it is damaged: a new uid tells two lives apart."""
        with suppress(OSError, OddFileError, msgspec.MsgspecError):
            content = read_small(self._tombstone_path(vm), max_bytes=RECORDS.record_bytes)
            if content is None or not isinstance(record := _opened(content), VMRecord):
                return None if content is None else msgspec.json.decode(content, type=ready(Tombstone))
            return _tombstone_of(record)  # whoever removed it was killed
        return None

    def note_attempt(self, vm: str, attempt: Attempt | None) -> None:
        """Remember that a VM which has no record could not be made. Raises TemporaryError."""
        path = self._attempt_path(vm)
        try:
            make_folder(self._attempts)
            write_whole(path, msgspec.json.encode(attempt))
        except OSError as error:
            message = f"cannot write {path}: {error.strerror}"
            raise TemporaryError(message, vm=vm, step="noting the attempt") from error

    def attempts(self) -> dict[str, Attempt]:
        """The attempts to make VMs that have no record. One that cannot be read is as if it had not been."""
        names = (name.removesuffix(".json") for name in _listed(self._attempts) if name.endswith(".json"))
        found = ((name, self.attempt(name)) for name in names if _NAME.fullmatch(name))
        return {name: attempt for name, attempt in found if attempt is not None}

    def attempt(self, vm: str) -> Attempt | None:
        """The attempt to make this VM, which has no record."""
        with suppress(OSError, OddFileError, msgspec.MsgspecError):
            content = read_small(self._attempt_path(vm), max_bytes=RECORDS.record_bytes)
            return None if content is None else msgspec.json.decode(content, type=ready(Attempt))
        return None

    def highest_token(self, project: str) -> int:
        """The highest token that this host has seen of a project, 0 if none. Raises SetupError."""
        return max(map(int, filter(str.isdigit, _listed(self._tokens / checked_name(project)))), default=0)

    def highest_tokens(self) -> dict[str, int]:
        """The highest token of every project. Raises SetupError."""
        return {name: self.highest_token(name) for name in _listed(self._tokens) if _NAME.fullmatch(name)}

    def advance_token(self, project: str, token: int) -> None:
        """Remember a token that is higher than those seen before. Raises OSError.

        Each token is an empty file of its own, so that nobody needs a lock: whoever comes late with a lower one
        takes nothing back.
        """
        folder = self._tokens / checked_name(project)
        make_folder(folder)
        seen = sorted((int(name) for name in _listed(folder) if name.isdigit()), reverse=True)
        try:
            os.close(os.open(folder / str(token), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            if error.errno not in FULL or not seen:
                raise
            (folder / str(seen[-1])).rename(folder / str(token))  # a disk that is full of files has room for this one
        sync_folder(folder)
        for old in seen[RECORDS.kept_tokens - 1 :]:
            (folder / str(old)).unlink(missing_ok=True)

    def _path_of(self, vm: str) -> Path:
        return self._vms / checked_name(vm) / "record.json"

    def _copy_path(self, vm: str) -> Path:
        return self._copies / f"{checked_name(vm)}.json"

    def _tombstone_path(self, vm: str) -> Path:
        return self._tombstones / f"{checked_name(vm)}.json"

    def _attempt_path(self, vm: str) -> Path:
        return self._attempts / f"{checked_name(vm)}.json"

    def _sweep_old(self) -> None:
        for folder in (self._tombstones, self._attempts):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - RECORDS.tombstone_s:
                        Path(entry.path).unlink(missing_ok=True)


def _tombstone_of(record: VMRecord) -> Tombstone:
    return Tombstone(generation=record.generation, action_id=record.action_id, token=record.token)


def checked_name(name: str) -> str:
    """`name`, if it may be a VM's or a project's and so part of a path. Raises PermanentError."""
    if not _NAME.fullmatch(name):
        rule = "up to 48 of a-z, 0-9 and '-', a letter or digit at both ends"
        raise PermanentError(f"no VM or project has such a name: {rule}", vm=repr(name[:60]), step="checking names")
    return name


def _sealed(record: VMRecord) -> bytes:
    content = msgspec.json.encode(record)
    envelope = _Envelope(format_version=FORMAT_VERSION, checksum=_checksum(content), record=msgspec.Raw(content))
    return msgspec.json.encode(envelope)


def _opened(content: bytes) -> VMRecord | str:
    """The record inside an envelope, or what is wrong with it, to be read after the file's name."""
    try:
        envelope = msgspec.json.decode(content, type=ready(_Envelope))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"is torn or no record: {error}"
    if envelope.format_version > FORMAT_VERSION:
        return f"has format {envelope.format_version}, written by a newer mikrom: upgrade mikrom on this host"
    if envelope.checksum != _checksum(bytes(envelope.record)):
        return "does not match its checksum: it was edited or damaged"
    try:
        return msgspec.json.decode(envelope.record, type=ready(VMRecord))
    except msgspec.MsgspecError as error:
        return f"is no record: {error}"


def _checksum(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _listed(folder: Path) -> list[str]:
    """The names in a folder, sorted; none when it does not exist yet. Raises SetupError."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - pathlib makes a Path of each
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetupError(f"cannot read {folder}: {error.strerror}; mend it, what it holds counts as unknown") from error

"""Folders of small files, each of one VM: written whole, and with a checksum, so that an edit is noticed."""

from __future__ import annotations

import os
import re
import secrets
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.errors import PermanentError, SetupError
from mikrom_reconcile.system.files import OddFileError, make_folder, read_small, write_over, write_whole
from mikrom_reconcile.times_and_sizes import RECORDS

T = TypeVar("T")

_FORMAT_VERSION = 1

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int
    checksum: str = ""  # a newer format may have neither of these
    record: msgspec.Raw = msgspec.Raw(b"null")


class JsonFolder(Generic[T]):
    """Files of one type, each in an envelope with a checksum, so that an edit is noticed. `file` is where a VM's file
    lies in the folder. The caller holds the VM's action lock when it writes, unless the folder is `shared`. What is not
    `durable` may be lost in a power cut, for no waiting.
    """

    def __init__(
        self, folder: Path, kind: type[T], *, file: str = "{}.json", durable: bool = True, shared: bool = False
    ) -> None:
        self.folder = folder
        self.path = lru_cache(RECORDS.cached_paths)(lambda vm: folder / file.format(checked_name(vm)))
        self._kind, self._durable, self._shared = kind, durable, shared

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
        put = partial(write_whole, or_before=or_before) if self._durable else write_over
        try:
            put(draft, content)
        except FileNotFoundError:
            make_folder(path.parent)
            put(draft, content)
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

"""The images that specs name, on this host: each file once, under its digest, verified before anybody sees it.

What was fetched is whole or not there. A file of the name of its digest is that file: nobody else may write into the
folder, so it is not read again at each start. The demo guest is built in: it is copied out of the package, because a
running VM must not depend on a path inside an environment that the next release replaces.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path

from mikrom_reconcile.core.model.devices import PinnedFile
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import CachedFile, Stock
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources import download
from mikrom_reconcile.host.resources.download import FetchError
from mikrom_reconcile.limits import IMAGES
from mikrom_reconcile.system import files, locks
from mikrom_reconcile.system.files import make_folder, sync_folder, write_whole

_MIB = 1 << 20


class ImageCache:
    """The files of this host. `folders` are those that `file://` may name; `max_mib` is the largest file taken."""

    def __init__(self, state_dir: Path, *, folders: tuple[Path, ...] = (), max_mib: int = IMAGES.max_mib) -> None:
        self._folder = state_dir / "images"
        self._cache = self._folder / "sha256"
        self._locks = state_dir / "locks"
        self._folders = folders or (self._folder,)
        self._max_bytes = max_mib * _MIB

    def hello(self) -> Path:
        """The demo guest's kernel, put into place if it is missing or not whole. Raises OSError."""
        content, name = _hello()
        path = self._folder / name
        try:
            if path.stat().st_size == len(content):  # a power cut may have left an empty file
                return path
        except FileNotFoundError:
            make_folder(self._folder)
        draft = path.with_name(f"{name}.{secrets.token_hex(4)}")  # many starts may find it missing at once
        write_whole(draft, content, durable=False)
        draft.replace(path)
        return path

    def path_of(self, file: PinnedFile) -> Path:
        """Where it is once it was fetched."""
        return self._cache / file.sha256

    def fetched(self, file: PinnedFile, *, give_up_at: float) -> Path:
        """The file, fetched if need be; one fetch per host, the others wait for it. Raises FetchError and OSError."""
        path = self.path_of(file)
        while not _used(path):
            make_folder(self._cache)
            lock = locks.held(self._lock_of(file.sha256), until=give_up_at, poll_s=IMAGES.lock_poll_s, unlink=True)
            with lock as is_ours:
                if not is_ours:
                    raise FetchError(f"{file.source}: another process still fetches it", lasting=False)
                if not path.exists():
                    self._fetch(file, path, give_up_at)
        return path

    def cached(self) -> Iterator[tuple[str, int, float]]:
        """Digest, bytes and time of last use of every file, in the order of digests."""
        for path in sorted(self._cache.glob("*")):
            with suppress(FileNotFoundError):
                found = path.stat()
                yield path.name, found.st_size, found.st_mtime

    def report(self, host: str, files: Iterable[PinnedFile], records: Records, *, deadline_s: float) -> Stock:
        """What is cached, and how many VMs use it, once `files` were fetched. One that fails stops no other.

        Raises SetupError when the records cannot be listed.
        """
        give_up_at = time.monotonic() + deadline_s
        failed: dict[str, str] = {}
        for file in files:
            try:
                self.fetched(file, give_up_at=give_up_at)
            except (MikromError, OSError) as error:
                failed[file.sha256] = str(error)
        uses, _ = image_uses(records)
        cached = tuple(
            CachedFile(sha256=name, size_bytes=size, vms=uses[name], last_used_at=datetime.fromtimestamp(used_s, UTC))
            for name, size, used_s in self.cached()
            if not name.endswith(".part")
        )
        return Stock(host=host, failed=failed, cached=cached)

    def sweep(self, used: frozenset[str]) -> tuple[str, ...]:
        """Remove files that nobody used for a day; their names. The digests `used` count as used now."""
        removed, oldest_s = [], time.time() - IMAGES.kept_s
        for name, _, last_used_s in self.cached():
            digest, path = name.removesuffix(".part"), self._cache / name
            if digest in used:
                _used(path)
            elif last_used_s <= oldest_s and self._remove(path, digest, oldest_s):
                removed.append(name)
        return tuple(removed)

    def _remove(self, path: Path, digest: str, oldest_s: float) -> bool:
        """Remove it, unless it is being fetched, or was used since it was found old."""
        with locks.held(self._lock_of(digest), unlink=True) as is_ours, suppress(FileNotFoundError):
            if is_ours and path.stat().st_mtime <= oldest_s:
                path.unlink()
                return True
        return False

    def _lock_of(self, digest: str) -> Path:
        return self._locks / f"image-{digest}.lock"

    def _fetch(self, file: PinnedFile, path: Path, give_up_at: float) -> None:
        draft = path.with_name(f"{path.name}.part")
        try:
            self._read(file.source, draft, give_up_at)
        except FetchError as error:
            raise FetchError(f"{file.source}: {error}", lasting=error.lasting) from error
        if (digest := _digest_of(draft)) != file.sha256:
            draft.unlink()
            message = f"{file.source}: its sha256 is {digest}, and the spec says {file.sha256}: one of them is wrong"
            raise FetchError(message, lasting=True)
        draft.chmod(0o444)
        draft.replace(path)
        sync_folder(self._cache)

    def _read(self, source: str, draft: Path, give_up_at: float) -> None:
        """Read all of it into `draft`, on from what an earlier attempt left there."""
        with draft.open("ab") as out:
            with download.opened(source, offset=out.tell(), folders=self._folders, give_up_at=give_up_at) as found:
                if found.offset == 0:
                    out.truncate(0)
                self._check_size(found.size or 0, found.offset)
                try:
                    for piece in found.pieces(give_up_at):
                        out.write(piece)
                        if found.size is None and out.tell() > self._max_bytes:
                            self._check_size(out.tell())
                except OSError:
                    out.truncate(0)  # a full disk is not made better by half a file
                    raise
            out.flush()
            files.sync(out.fileno())

    def _check_size(self, size: int, known: int = 0) -> None:
        """Raise FetchError if that many bytes are too many, or more than the disk has left beside the `known` ones."""
        if size > self._max_bytes:
            message = f"it has {size // _MIB} MiB or more, and MIKROM_IMAGE_MAX_MIB is {self._max_bytes // _MIB}"
            raise FetchError(message, lasting=True)
        disk = os.statvfs(self._cache)
        left = disk.f_bavail * disk.f_frsize
        if size - known > left:
            message = f"it needs {(size - known) // _MIB + 1} MiB and {left // _MIB} are left in {self._cache}"
            raise FetchError(message, lasting=False)


def image_uses(records: Records) -> tuple[Counter[str], bool]:
    """How many VMs name each digest, and whether every record could be read. Raises SetupError."""
    uses, is_whole = Counter[str](), True
    for record in records.list():
        time.sleep(0)  # lets other greenlets run
        if isinstance(record, VMRecord):
            uses.update({file.sha256 for file in record.spec.boot.files().values()} if record.spec.boot else ())
        else:
            is_whole = False
    return uses, is_whole


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while piece := content.read(IMAGES.piece_bytes):
            digest.update(piece)
            time.sleep(0)  # lets other greenlets run
    return digest.hexdigest()


def _used(path: Path) -> bool:
    """Whether it is there. Its time then says that it is used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@cache
def _hello() -> tuple[bytes, str]:
    content = (resources.files("mikrom_reconcile") / "guest" / "hello.elf").read_bytes()
    return content, f"hello-{hashlib.blake2b(content, digest_size=6).hexdigest()}.elf"

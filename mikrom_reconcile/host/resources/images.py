"""The images that specs name, on this host: each file once, under its digest, verified before anybody sees it. What was
fetched is whole or not there, and is not read again at each start. The demo guest is copied out of the package: a
running VM must not depend on a path inside an environment that the next release replaces.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import CachedFile
from mikrom_reconcile.core.specs.images import is_container_image
from mikrom_reconcile.host.oci import unpack
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.system import files, locks
from mikrom_reconcile.system.download import FetchError, Opened, local_file
from mikrom_reconcile.system.files import make_folder, sync_folder, write_whole
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES, IMAGES, VMMS

if TYPE_CHECKING:
    from mikrom_reconcile.host.oci.sources import Registry

_MIB = 1 << 20
_DRAFTS = (".tree", ".part", ".new")
"""What is not whole yet: a folder that a disk is made of, a file that is being written."""


class ImageCache:
    """The files of this host. `folders` are those that `file://` may name; `max_mib` is the largest file taken."""

    def __init__(
        self,
        state_dir: Path,
        *,
        folders: tuple[Path, ...] = (),
        max_mib: int = IMAGES.max_mib,
        registry_auth: Path | None = None,
        registry_mirrors: Mapping[str, str] | None = None,
    ) -> None:
        state_dir = state_dir.resolve()
        self._folder = state_dir / "images"
        self._cache = self._folder / "sha256"
        self._parts = self._folder / "parts"  # of container images: manifests and layers
        self._locks = state_dir / "locks"
        self._folders = folders or (self._folder,)
        self._max_bytes = max_mib * _MIB
        self._registry_auth, self._registry_mirrors = registry_auth, registry_mirrors or {}

    def hello(self) -> Path:
        """The demo guest's kernel, put into place if it is missing or not whole. Raises OSError."""
        content, name = _hello()
        path = self._folder / name
        with suppress(FileNotFoundError):
            if path.stat().st_size != len(content):  # a power cut may have left an empty file
                path.unlink()
        guest = PinnedFile(source="hello", sha256=name)
        return self._once(guest, path, math.inf, lambda: write_whole(path, content, durable=False))

    def path_of(self, file: PinnedFile) -> Path:
        """Where it is once it was fetched, or made of what was."""
        if not is_container_image(file.source):
            return self._cache / file.sha256
        from mikrom_reconcile.host.oci import rootdisk  # noqa: PLC0415 - what only container images need: 12 ms

        return self._cache / f"{file.sha256}.{rootdisk.recipe()}"

    def fetched(self, file: PinnedFile, *, give_up_at: float, unpacked: bool = False) -> Path:
        """The file, fetched or made if need be; once per host, others wait. Raises FetchError and OSError. `unpacked`
        asks for a kernel that is no longer packed, for a VMM that cannot do that.
        """
        path = self.path_of(file)
        make = self._make_disk if is_container_image(file.source) else self._fetch
        self._once(file, path, give_up_at, lambda: make(file, path, give_up_at))
        if not unpacked:
            return path
        with path.open("rb") as content:
            if not unpack.is_packed_kernel(content.read(VMMS.kernel_head_bytes)):
                return path
        elf = path.with_name(f"{path.name}.elf")
        return self._once(file, elf, give_up_at, lambda: self._unpack(path, elf))

    def _unpack(self, packed: Path, elf: Path) -> None:
        if packed.stat().st_size > CONTAINER_IMAGES.kernel_bytes:
            raise FetchError("it is larger than any kernel")
        write_whole(elf, unpack.kernel_in(packed.read_bytes()))
        elf.chmod(0o444)

    def pinned(self, path: Path) -> dict[str, str]:
        """A file that `file://` may name, as an Image names it. Raises FetchError and OSError."""
        with local_file(str(path), self._folders, "MIKROM_IMAGE_DIRS"):
            return {"source": path.as_uri(), "sha256": _digest_of(path)}

    def part(self, file: PinnedFile, registry: Registry | None, *, give_up_at: float) -> Path:
        """A part of a container image, fetched if need be. Raises FetchError and OSError."""
        path = self._parts / file.sha256
        return self._once(file, path, give_up_at, lambda: self._fetch(file, path, give_up_at, registry))

    def _once(self, file: PinnedFile, path: Path, give_up_at: float, make: Callable[[], None]) -> Path:
        while not _used(path):
            make_folder(path.parent)
            lock = locks.held(self._lock_of(path.name), until=give_up_at, poll_s=IMAGES.lock_poll_s, unlink=True)
            with lock as is_ours:
                if not is_ours:
                    raise FetchError(f"{file.source}: another process still fetches it", lasting=False)
                try:
                    if not path.exists():
                        make()
                except FetchError as error:
                    raise FetchError(f"{file.source}: {error}", lasting=error.lasting) from error
        return path

    def _make_disk(self, file: PinnedFile, path: Path, give_up_at: float) -> None:
        """A root disk of a container image, whose parts stay for a while: the next image may share them."""
        from mikrom_reconcile.host.oci import rootdisk  # noqa: PLC0415 - as in `path_of`
        from mikrom_reconcile.host.oci.sources import image_of, registry_of  # noqa: PLC0415 - with TLS 15 ms more

        registry = partial(registry_of, auth_file=self._registry_auth, mirrors=self._registry_mirrors)
        fetch = partial(self.part, give_up_at=give_up_at)
        draft = path.with_name(f"{path.name}.part")
        draft.unlink(missing_ok=True)
        image = image_of(file, fetch, registry, max_bytes=self._max_bytes)
        rootdisk.build(image, draft, max_bytes=self._max_bytes, give_up_at=give_up_at)
        _put(draft, path, mode=0o555 if image.process.words else 0o444)  # as a program: whether it runs by itself

    def cached(self) -> Iterator[tuple[str, int, float]]:
        """Digest, bytes and time of last use of every file, in the order of digests."""
        for path in sorted(self._cache.glob("*")):
            with suppress(FileNotFoundError):
                found = path.stat()
                if path.suffix not in _DRAFTS:
                    yield path.name.partition(".")[0], found.st_size, found.st_mtime

    def fetch(self, files: Iterable[PinnedFile], *, deadline_s: float) -> dict[str, str]:
        """Cache these files; why some could not be had, by digest. One that fails stops no other."""
        give_up_at, failed = time.monotonic() + deadline_s, dict[str, str]()
        for file in files:
            try:
                self.fetched(file, give_up_at=give_up_at)
            except (MikromError, OSError) as error:
                failed[file.sha256] = str(error)
        return failed

    def report(self, records: Records) -> tuple[CachedFile, ...]:
        """What is cached, and how many VMs use it. Raises SetupError when the records cannot be listed."""
        uses, _ = image_uses(records)
        return tuple(
            CachedFile(
                sha256=name,
                size_bytes=size,
                vms=len(uses[name]),
                last_used_at=datetime.fromtimestamp(used_s, UTC),
                used_by=tuple(sorted(uses[name])),
            )
            for name, size, used_s in self.cached()
        )

    def sweep(self, used: frozenset[str]) -> tuple[str, ...]:
        """Remove files that nobody used for a day; their names. The digests `used` count as used now."""
        removed = []
        for path in (*sorted(self._cache.glob("*")), *sorted(self._parts.glob("*"))):
            if path.parent == self._cache and path.name.partition(".")[0] in used:
                _used(path)
            elif self._removed(path):
                removed.append(path.name)
        return tuple(removed)

    def _removed(self, path: Path) -> bool:
        """Remove it, unless it is being fetched, or was used lately."""
        with suppress(FileNotFoundError), locks.held(self._lock_of(path.name), unlink=True) as is_ours:
            if is_ours and time.time() - path.stat().st_mtime >= IMAGES.kept_s:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                return True
        return False

    def _lock_of(self, name: str) -> Path:
        for draft in _DRAFTS:
            name = name.removesuffix(draft)
        return self._locks / f"image-{name}.lock"

    def _fetch(self, file: PinnedFile, path: Path, give_up_at: float, registry: Registry | None = None) -> None:
        draft = path.with_name(f"{path.name}.part")
        open_at = partial(_opened, folders=self._folders) if registry is None else registry.opened
        self._read(partial(open_at, file.source, give_up_at=give_up_at), draft, give_up_at)
        if (digest := _digest_of(draft)) != file.sha256:
            draft.unlink()
            raise FetchError(f"its sha256 is {digest}, and the spec says {file.sha256}: one of them is wrong")
        _put(draft, path)

    def _read(self, open_at: Callable[..., AbstractContextManager[Opened]], draft: Path, give_up_at: float) -> None:
        """Read all of it into `draft`, on from what an earlier attempt left there."""
        with draft.open("ab") as out:
            with open_at(offset=out.tell()) as found:
                if found.offset == 0:
                    out.truncate(0)
                self._check_size(draft.parent, found.size or 0, found.offset)
                try:
                    for piece in found.pieces(give_up_at):
                        out.write(piece)
                        if found.size is None and out.tell() > self._max_bytes:
                            self._check_size(draft.parent, out.tell())
                except OSError:
                    out.truncate(0)  # a full disk is not made better by half a file
                    raise
            out.flush()
            files.sync(out.fileno())

    def _check_size(self, folder: Path, size: int, known: int = 0) -> None:
        """Raise FetchError if that many bytes are too many, or more than the disk has left beside the `known` ones."""
        if size > self._max_bytes:
            message = f"it has {size // _MIB} MiB or more, and MIKROM_IMAGE_MAX_MIB is {self._max_bytes // _MIB}"
            raise FetchError(message)
        disk = os.statvfs(folder)
        left = disk.f_bavail * disk.f_frsize
        if size - known > left:
            message = f"it needs {(size - known) // _MIB + 1} MiB and {left // _MIB} are left in {folder}"
            raise FetchError(message, lasting=False)


def image_uses(records: Records) -> tuple[defaultdict[str, set[str]], bool]:
    """The VMs that name each digest, and whether every record could be read. Raises SetupError."""
    uses, is_whole = defaultdict[str, set[str]](set), True
    for record in records.list():
        time.sleep(0)  # lets other greenlets run
        if isinstance(record, VMRecord):
            for spec in (record.spec, *([record.before.spec] if record.before else [])):
                for file in spec.boot.files().values() if spec.boot else ():
                    uses[file.sha256].add(record.vm)
        else:
            is_whole = False
    return uses, is_whole


def _put(draft: Path, path: Path, mode: int = 0o444) -> None:
    draft.chmod(mode)
    draft.replace(path)
    sync_folder(path.parent)


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


@contextmanager
def _opened(source: str, *, offset: int, folders: tuple[Path, ...], give_up_at: float) -> Iterator[Opened]:
    """The source until `give_up_at`, from `offset` on if it can, else from its beginning. Raises FetchError."""
    parts = urlsplit(source)
    if parts.scheme != "file":
        from mikrom_reconcile.system import https_source  # noqa: PLC0415 - 20 ms that others need not pay

        with https_source.opened(source, offset=offset, give_up_at=give_up_at) as found:
            yield found
        return
    with local_file(unquote(parts.path), folders, "MIKROM_IMAGE_DIRS") as content:
        yield Opened(content, offset=0, size=os.fstat(content.fileno()).st_size)

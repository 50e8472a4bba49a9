"""Layers, applied one upon the other as the OCI image specification says. Whiteouts remove what lower layers brought,
never what their own layer brings, in whichever order it comes. A folder upon a folder keeps what is in it; anything
else takes the place of what was there. A tar may be made to do harm: each bound is kept here.
"""

import errno
import gzip
import hashlib
import math
import os
import stat
import tarfile
import time
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from decimal import Decimal, InvalidOperation
from tarfile import HeaderError
from typing import IO, Any, BinaryIO, Literal, Self

from mikrom_reconcile.host.oci import unpack
from mikrom_reconcile.host.oci.manifests import Layer
from mikrom_reconcile.host.oci.tree import Names, Tree, names_in
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.system.files import descriptor
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES, IMAGES

_ENDS = frozenset({"EOFHeaderError", "EmptyHeaderError"})
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Budget:
    """What all layers of one image together may take, and `until` when."""

    def __init__(self, max_bytes: int, until: float = math.inf, *, entries: int = CONTAINER_IMAGES.entries) -> None:
        self._until = until
        self._max_bytes = self._bytes_left = max_bytes
        self._entries = self._entries_left = entries

    def take(self, size: int) -> None:
        """Raise FetchError when that is too much, or time is up."""
        if time.monotonic() > self._until:
            raise FetchError("no more time to unpack it: an action may not take so long here", lasting=False)
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise FetchError(f"unpacked it has more than {self._max_bytes >> 20} MiB (MIKROM_IMAGE_MAX_MIB)")

    def take_entry(self) -> None:
        """Raise FetchError when there are too many."""
        self._entries_left -= 1
        if self._entries_left < 0:
            raise FetchError(f"it has more than {self._entries} files")


class Metered:
    """The bytes of a tar on their way: counted, hashed, and few of them in one header."""

    def __init__(self, content: IO[bytes], budget: Budget) -> None:
        self._content, self.budget, self.digest = content, budget, hashlib.sha256()
        self.header_left: int | None = None  # while one is read

    def read(self, size: int) -> bytes:
        """As a file does."""
        piece = self._content.read(size)
        self.digest.update(piece)
        self.budget.take(len(piece))
        if self.header_left is not None:
            self.header_left -= len(piece)
            if self.header_left < 0:
                raise FetchError(f"an entry has more than {CONTAINER_IMAGES.header_bytes >> 20} MiB of headers")
        time.sleep(0)  # lets other greenlets run
        return piece

    def __getattr__(self, name: str) -> Any:
        """`seek` and `tell`, where there is no stream."""
        return getattr(self._content, name)


class _Entry(tarfile.TarInfo):
    """An entry. `tarfile` itself takes any size of headers, and takes a broken one for the end."""

    metered: Metered

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        is_whole = cls.metered.header_left is None  # else it is a part of the one around it
        if is_whole:
            cls.metered.header_left = CONTAINER_IMAGES.header_bytes + CONTAINER_IMAGES.tar_buffer_bytes
        try:
            found = super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ in _ENDS:
                raise
            raise FetchError(f"its tar is broken: {error}") from error
        finally:
            if is_whole:
                cls.metered.header_left = None
        cls.metered.budget.take_entry()
        return found


def entries(layer: Layer, budget: Budget) -> Generator[tuple[tarfile.TarInfo, IO[bytes] | None], None, None]:
    """Each entry with its content, if it is a file: to be read before the next is asked for. Raises FetchError, at the
    end too: only then is known by its digest whether all of it may be used.
    """
    with layer.opened() as packed, _unpacked(packed) as content, opened_tar(content, budget, "r|") as (tar, metered):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else it remembers every one
            yield member, tar.extractfile(member) if member.isreg() else None
        while metered.read(IMAGES.piece_bytes):  # what is behind its end counts for the digest
            pass
    found = f"sha256:{metered.digest.hexdigest()}"
    if found != layer.diff_id:
        raise FetchError(f"unpacked its digest is {found}, and the image says {layer.diff_id}")


@contextmanager
def opened_tar(file: IO[bytes], budget: Budget, mode: Literal["r|", "r:"]) -> Iterator[tuple[tarfile.TarFile, Metered]]:
    """A tar, with what it is read through. Whatever is wrong with it raises FetchError, here and in the caller."""
    metered = Metered(file, budget)
    entry = type("Entry", (_Entry,), {"metered": metered})
    with (
        unbroken(),
        tarfile.open(
            fileobj=metered,
            mode=mode,
            bufsize=CONTAINER_IMAGES.tar_buffer_bytes,
            tarinfo=entry,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar,
    ):
        yield tar, metered


@contextmanager
def unbroken() -> Iterator[None]:
    """Say of what goes wrong while a tar is read that it is broken. Raises FetchError."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FetchError(f"its tar is broken or ends too early: {error}") from error
    except (ValueError, OverflowError, IndexError, RecursionError) as error:  # of headers that make no sense
        raise FetchError(f"its tar makes no sense: {error}") from error


@contextmanager
def _unpacked(packed: BinaryIO) -> Iterator[IO[bytes]]:
    """The tar itself. What packed it is told by its first bytes, since what a manifest says of it may be wrong."""
    start = packed.read(len(_ZSTD))
    packed.seek(0)
    if start.startswith(_GZIP):
        with gzip.GzipFile(fileobj=packed) as content:
            yield content  # type: ignore[misc]  # it reads
    elif start == _ZSTD:
        with unpack.unpacked("zstd", packed) as content:
            yield content
    else:
        yield packed


_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_FOREIGN_XATTRS = ("security.selinux", "trusted.overlay.")
"""Of the machine that an image was made on, and of no use elsewhere."""
_LAST_ID = (1 << 32) - 2
_MALFORMED = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EMLINK})
"""What the kernel answers to names and links that cannot be."""


def apply(tree: Tree, layer: Layer, budget: Budget) -> None:
    """Apply a layer to those before. Raises FetchError, and OSError where this host lacks room or rights."""
    applied = _Applied(tree, budget)
    with closing(entries(layer, budget)) as found:
        for member, content in found:
            with _named(member.name), unbroken():
                applied.take(member, content)


class _Applied:
    """What a layer has brought so far."""

    def __init__(self, tree: Tree, budget: Budget) -> None:
        self._tree, self._budget = tree, budget
        self._brought: set[Names] = set()  # with the folders above

    def take(self, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        path = _path_of(member.name)
        if not path:
            self._dress_root(member)
        elif path[-1] == _OPAQUE:
            with suppress(FileNotFoundError):
                self._remove_lower(path[:-1])
        elif path[-1].startswith(_WHITEOUT):
            with suppress(FileNotFoundError):
                self._white_out(path[:-1], path[-1].removeprefix(_WHITEOUT))
        else:
            self._add(path, member, content)

    def _dress_root(self, member: tarfile.TarInfo) -> None:
        if not member.isdir():
            raise FetchError("the root of a tree has to be a folder")
        fd, _ = self._tree.folder((), make=False)
        _dress(fd, b".", member)
        self._tree.times_ns[()] = _moment_ns(member)

    def _white_out(self, above: Names, name: bytes) -> None:
        if name in {b"", b".", b".."}:
            raise FetchError("it is a whiteout of nothing")
        fd, where = self._tree.folder(above, make=False)
        if (*where, name) not in self._brought:
            self._tree.remove(fd, name)
        elif stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            self._remove_lower((*where, name))

    def _remove_lower(self, path: Names) -> None:
        """Remove what lower layers have brought into a folder."""
        fd, where = self._tree.folder(path, make=False)
        for name in [os.fsencode(entry.name) for entry in os.scandir(fd)]:
            self._white_out(where, name)

    def _add(self, path: Names, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        *above, name = path
        fd, where = self._tree.folder(tuple(above), make=True)
        found = self._tree.found(fd, name)
        if found is not None and not (member.isdir() and stat.S_ISDIR(found.st_mode)):
            self._tree.remove(fd, name)
            fd, where = self._tree.folder(tuple(above), make=True)
        if member.islnk():
            self._link(tuple(above), name, member)
        else:
            self._make(fd, name, member, content)
            _dress(fd, name, member)
        if member.isdir():
            self._tree.times_ns[*where, name] = _moment_ns(member)
        path = (*where, name)
        while path and path not in self._brought:
            self._brought.add(path)
            path = path[:-1]

    def _make(self, fd: int, name: bytes, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        if content is not None:
            with self._tree.new_file(fd, name) as out:
                self._copy(member, content, out)
        elif member.isdir():
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
        elif member.issym():
            os.symlink(_raw(member.linkname), name, dir_fd=fd)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=fd)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=fd)
        else:
            raise FetchError(f"it is of the unknown kind {member.type!r}")

    def _copy(self, member: tarfile.TarInfo, content: IO[bytes], out: IO[bytes]) -> None:
        runs: Any = member.sparse
        end = 0
        for start, size in runs or ():
            if size == 0:  # GNU tar fills a header with them
                continue
            if start < end or size < 0 or start + size > member.size:
                raise FetchError("it has holes that make no sense")
            end = start + size
        if runs is not None:
            self._budget.take(member.size)  # its holes are not in the tar
        while piece := content.read(IMAGES.piece_bytes):
            if runs is not None and piece.count(0) == len(piece):
                out.seek(len(piece), os.SEEK_CUR)
            else:
                out.write(piece)
        out.truncate()

    def _link(self, above: Names, name: bytes, member: tarfile.TarInfo) -> None:
        *target_above, target = _path_of(member.linkname) or (b"",)
        try:
            fd, _ = self._tree.folder(tuple(target_above), make=False)
            with descriptor(f"/proc/self/fd/{fd}", os.O_RDONLY) as old:
                new, _ = self._tree.folder(above, make=False)
                os.link(target, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:  # a folder is not permitted
            raise FetchError(f"it is a hard link to {member.linkname}, which is no file") from error


def _path_of(name: str) -> Names:
    path = names_in(_raw(name))
    if b".." in path:
        raise FetchError("it climbs out of the tree")
    if len(path) > CONTAINER_IMAGES.depth or len(_raw(name)) > CONTAINER_IMAGES.path_bytes:
        raise FetchError(f"it is more than {CONTAINER_IMAGES.depth} folders deep, or its name too long")
    return path


def _dress(fd: int, name: bytes, member: tarfile.TarInfo) -> None:
    """Give it its owner, mode, attributes and time; in this order, since each may undo those after it."""
    if not (0 <= member.uid <= _LAST_ID and 0 <= member.gid <= _LAST_ID):
        raise FetchError(f"its owner {member.uid}:{member.gid} is none")
    os.chown(name, member.uid, member.gid, dir_fd=fd, follow_symlinks=False)
    if not member.issym():
        os.chmod(name, member.mode & 0o7777, dir_fd=fd)
    path = b"/proc/self/fd/%d/%s" % (fd, name)
    if member.isdir():
        for old in os.listxattr(path, follow_symlinks=False):
            if not old.startswith(_FOREIGN_XATTRS):
                os.removexattr(path, old, follow_symlinks=False)
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR) and not key.removeprefix(_XATTR).startswith(_FOREIGN_XATTRS):
            os.setxattr(path, _raw(key.removeprefix(_XATTR)), _raw(value), follow_symlinks=False)
    if not member.isdir():
        moment = _moment_ns(member)
        os.utime(name, ns=(moment, moment), dir_fd=fd, follow_symlinks=False)


def _moment_ns(member: tarfile.TarInfo) -> int:
    try:
        moment_s = Decimal(member.pax_headers.get("mtime", member.mtime))  # a float would lose the nanoseconds
        return int(min(max(moment_s, Decimal(0)), Decimal(CONTAINER_IMAGES.last_time_s)) * 10**9)
    except (InvalidOperation, ValueError) as error:
        raise FetchError("its time makes no sense") from error


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let errors name the entry that they are of."""
    shown = repr(name[:200])
    try:
        yield
    except FetchError as error:
        raise FetchError(f"{shown}: {error}", lasting=error.lasting) from error
    except OSError as error:
        if error.errno in _MALFORMED:
            raise FetchError(f"{shown}: {error.strerror}") from error
        raise OSError(error.errno, f"{error.strerror} (unpacking {shown})") from error

"""The entries of a layer, out of a tar that may be packed and may be made to do harm: each bound is kept here.

A layer is read once, from front to end. What it was until then is only known at the end, by its digest: who takes
entries from here throws away what was made of them when the last one raises.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import tarfile
import time
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from tarfile import HeaderError
from typing import IO, Any, BinaryIO, Literal, Self

from mikrom_reconcile.host.oci import zstd
from mikrom_reconcile.host.oci.manifests import Layer
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES, IMAGES

_ENDS = frozenset({"EOFHeaderError", "EmptyHeaderError"})
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class Budget:
    """What all layers of one image together may take, until `give_up_at`."""

    def __init__(
        self, max_bytes: int, give_up_at: float = math.inf, *, entries: int = CONTAINER_IMAGES.entries
    ) -> None:
        self._give_up_at = give_up_at
        self._max_bytes = self._bytes_left = max_bytes
        self._entries = self._entries_left = entries

    def take(self, size: int) -> None:
        """Raise FetchError when that is too much, or time is up."""
        if time.monotonic() > self._give_up_at:
            raise FetchError("no more time to unpack it: an action may not take so long here", lasting=False)
        self._bytes_left -= size
        if self._bytes_left < 0:
            message = f"unpacked it has more than {self._max_bytes >> 20} MiB (MIKROM_IMAGE_MAX_MIB)"
            raise FetchError(message, lasting=True)

    def take_entry(self) -> None:
        """Raise FetchError when there are too many."""
        self._entries_left -= 1
        if self._entries_left < 0:
            raise FetchError(f"it has more than {self._entries} files", lasting=True)


class Metered:
    """The bytes of a tar on their way: counted, hashed, and few of them in one header."""

    def __init__(self, content: IO[bytes], budget: Budget) -> None:
        self._content = content
        self.budget = budget
        self._header_left: int | None = None
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """As a file does."""
        piece = self._content.read(size)
        self.digest.update(piece)
        self.budget.take(len(piece))
        if self._header_left is not None:
            self._header_left -= len(piece)
            if self._header_left < 0:
                message = f"an entry has more than {CONTAINER_IMAGES.header_bytes >> 20} MiB of headers"
                raise FetchError(message, lasting=True)
        time.sleep(0)  # lets other greenlets run
        return piece

    def __getattr__(self, name: str) -> Any:
        """`seek` and `tell`, where there is no stream."""
        return getattr(self._content, name)

    @contextmanager
    def header(self) -> Iterator[None]:
        """While one is read. One within another is a part of it."""
        if self._header_left is not None:
            yield
            return
        self._header_left = CONTAINER_IMAGES.header_bytes + CONTAINER_IMAGES.tar_buffer_bytes
        try:
            yield
        finally:
            self._header_left = None


class _Entry(tarfile.TarInfo):
    """An entry. `tarfile` itself takes any size of headers, and takes a broken one for the end."""

    metered: Metered

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            with cls.metered.header():
                found = super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ in _ENDS:
                raise
            raise FetchError(f"its tar is broken: {error}", lasting=True) from error
        cls.metered.budget.take_entry()
        return found


def entries(layer: Layer, budget: Budget) -> Generator[tuple[tarfile.TarInfo, IO[bytes] | None], None, None]:
    """Each entry with its content, if it is a file: to be read before the next is asked for. Raises FetchError."""
    with (
        layer.opened() as packed,
        _unpacked(packed) as content,
        opened_tar(content, budget, "r|") as (tar, metered),
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else it remembers every one
            yield member, tar.extractfile(member) if member.isreg() else None
        while metered.read(IMAGES.piece_bytes):  # what is behind its end counts for the digest
            pass
    found = f"sha256:{metered.digest.hexdigest()}"
    if found != layer.diff_id:
        raise FetchError(f"unpacked its digest is {found}, and the image says {layer.diff_id}", lasting=True)


@contextmanager
def opened_tar(
    content: IO[bytes], budget: Budget, mode: Literal["r|", "r:"]
) -> Iterator[tuple[tarfile.TarFile, Metered]]:
    """A tar, with what it is read through. Whatever is wrong with it raises FetchError, here and in the caller."""
    metered = Metered(content, budget)
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
        raise FetchError(f"its tar is broken or ends too early: {error}", lasting=True) from error
    except (ValueError, OverflowError, IndexError, RecursionError) as error:  # of headers that make no sense
        raise FetchError(f"its tar makes no sense: {error}", lasting=True) from error


@contextmanager
def _unpacked(packed: BinaryIO) -> Iterator[IO[bytes]]:
    """The tar itself. What packed it is told by its first bytes, since what a manifest says of it may be wrong."""
    start = packed.read(len(_ZSTD))
    packed.seek(0)
    if start.startswith(_GZIP):
        with gzip.GzipFile(fileobj=packed) as content:
            yield content  # type: ignore[misc]  # it reads
    elif start == _ZSTD:
        with zstd.unpacked(packed) as content:
            yield content
    else:
        yield packed

"""Kernels as distributions ship them, unpacked: packed here by the programs that kernels are packed with."""

from __future__ import annotations

import hashlib
import lzma
import os
import struct
import subprocess
import time
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.host.oci import unpack
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.system.download import FetchError

ELF = b"\x7fELF" + os.urandom(200_000) + bytes(200_000) + b"kernel and more " * (9 << 16)
"""More than one block of lz4."""

PACKERS = {
    "gzip": ("gzip", "-n"),
    "xz": ("xz", "--check=crc32"),
    "zstd": ("zstd", "-q", "--long=25"),
    "lz4": ("lz4", "-l", "-q", "-9"),
}


def packed(packer: str, content: bytes = ELF) -> bytes:
    return subprocess.run(PACKERS[packer], input=content, capture_output=True, check=True).stdout


def bzimage(payload: bytes, *, version: int = 0x20F, length: int | None = None) -> bytes:
    setup = bytearray(512 * 5)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<II", setup, 0x248, 64, len(payload) if length is None else length)
    return bytes(setup) + bytes(64) + payload + b"behind it"


def with_size(packer: str, payload: bytes, size: int = len(ELF)) -> bytes:
    """The build of a kernel writes the unpacked size behind what has none: gzip's format ends with it."""
    return payload if packer == "gzip" else payload + struct.pack("<I", size)


@pytest.mark.needs("gzip", "xz", "zstd", "lz4")
@pytest.mark.parametrize("packer", PACKERS)
def test_a_kernel_is_unpacked_however_it_was_packed(packer: str) -> None:
    image = bzimage(with_size(packer, packed(packer)))
    assert unpack.is_packed_kernel(image[:600])
    assert unpack.kernel_in(image) == ELF


def test_what_is_no_bzimage_is_left_alone() -> None:
    assert not unpack.is_packed_kernel(ELF[:600])
    assert not unpack.is_packed_kernel(b"short")


@pytest.mark.needs("gzip", "xz", "zstd", "lz4")
@pytest.mark.parametrize("packer", PACKERS)
def test_a_kernel_that_is_cut_off_or_changed_is_refused(packer: str) -> None:
    payload = with_size(packer, packed(packer))
    for broken in (
        bzimage(payload)[: len(payload) // 2],
        bzimage(payload[: len(payload) // 2]),
        bzimage(payload[:1000] + payload[-1000:]),
        bzimage(payload[:-4] + struct.pack("<I", len(ELF) - 1)),
        bzimage(payload[:-4] + struct.pack("<I", len(ELF) + 1)),
        bzimage(payload[:-4] + struct.pack("<I", 1 << 31)),
    ):
        with pytest.raises(FetchError) as caught:
            unpack.kernel_in(broken)
        assert caught.value.lasting


def test_what_wants_more_memory_than_any_build_takes_is_refused() -> None:
    fast = {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29, "mf": lzma.MF_HC3, "mode": lzma.MODE_FAST}
    payload = lzma.compress(ELF, check=lzma.CHECK_CRC32, filters=[fast])
    with pytest.raises(FetchError, match="Memory usage limit exceeded"):
        unpack.kernel_in(bzimage(with_size("xz", payload)))


@pytest.mark.needs("gzip")
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (bzimage(b"BZh91AY&SY" + bytes(50)), "packed in a way other than gzip, xz, zstd and lz4"),
        (bzimage(b"\x1f\x8b\x08" + bytes(50), version=0x207), "has no kernel in it"),
        (bzimage(b"\x1f\x8b\x08", length=0), "has no kernel in it"),
        (bzimage(bytes(8), length=1 << 31), "has no kernel in it"),
        (bzimage(packed("gzip", b"no kernel")), "what is in it is no kernel"),
        (
            bzimage(b"\x02\x21\x4c\x18" + struct.pack("<I", 5) + b"\x10x\x00\x00\x00" + struct.pack("<I", 99)),
            "its lz4 is broken",
        ),
        (
            bzimage(b"\x02\x21\x4c\x18" + struct.pack("<I", 5) + b"\x10x\x09\x00\x00" + struct.pack("<I", 99)),
            "its lz4 is broken",
        ),
        (bytes(0x202) + b"HdrS", "broken bzImage"),
    ],
)
def test_a_kernel_that_makes_no_sense_says_so(image: bytes, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        unpack.kernel_in(image)


@pytest.mark.needs("gzip")
def test_a_host_unpacks_a_kernel_once_and_only_for_a_vmm_that_cannot(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "state", folders=(tmp_path,))
    for name, content in (("packed", bzimage(packed("gzip"))), ("plain", ELF), ("broken", bzimage(bytes(50)))):
        (tmp_path / name).write_bytes(content)
        file = PinnedFile(source=f"file://{tmp_path}/{name}", sha256=hashlib.sha256(content).hexdigest())
        as_it_is = cache.fetched(file, unpacked=False, give_up_at=time.monotonic() + 30)
        assert as_it_is.read_bytes() == content
        if name == "broken":
            with pytest.raises(FetchError, match=r"file://.*/broken: it is a bzImage"):
                cache.fetched(file, unpacked=True, give_up_at=time.monotonic() + 30)
            continue
        unpacked = cache.fetched(file, unpacked=True, give_up_at=time.monotonic() + 30)
        assert unpacked.read_bytes() == ELF
        assert (unpacked == as_it_is) == (name == "plain")
        assert (
            cache.fetched(file, unpacked=True, give_up_at=time.monotonic() + 30).stat().st_ino == unpacked.stat().st_ino
        )

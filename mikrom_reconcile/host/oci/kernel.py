"""Kernels as distributions ship them, unpacked: Firecracker boots an ELF file only, and what Debian or Fedora install
is one that a loader unpacks (a bzImage).

Offsets are those of the boot protocol (Documentation/arch/x86/boot.rst of Linux).
"""

import lzma
import struct
import time
import zlib
from tempfile import TemporaryFile

from mikrom_reconcile.host.oci import zstd
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

_ELF = b"\x7fELF"


def is_packed(head: bytes) -> bool:
    """Whether a kernel that begins so is a bzImage. Its first 600 bytes tell."""
    return head[0x202:0x206] == b"HdrS" and not head.startswith(_ELF)


def unpacked(image: bytes) -> bytes:
    """The ELF file in a bzImage. Raises FetchError."""
    try:
        (version,) = struct.unpack_from("<H", image, 0x206)
        offset, length = struct.unpack_from("<II", image, 0x248)
        start = ((image[0x1F1] or 4) + 1) * 512 + offset
        payload = image[start : start + length]
        if version < 0x208 or len(payload) != length or length < 8:
            raise FetchError("it is a bzImage that has no kernel in it, or ends too early", lasting=True)
        (size,) = struct.unpack("<I", payload[-4:])
        if size > CONTAINER_IMAGES.kernel_bytes:
            raise FetchError(f"its kernel has {size >> 20} MiB, more than any", lasting=True)
        elf = _content(payload, size)
    except (struct.error, IndexError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise FetchError(f"it is a broken bzImage: {error}", lasting=True) from error
    if len(elf) != size or not elf.startswith(_ELF):
        raise FetchError("it is a broken bzImage: what is in it is no kernel", lasting=True)
    return elf


def _content(payload: bytes, size: int) -> bytes:
    if payload.startswith(b"\x1f\x8b\x08"):
        return zlib.decompressobj(31).decompress(payload, size + 1)
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload, size + 1)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd(payload[:-4], size)
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return _lz4_frame(payload[4:-4], size)
    known = "gzip, xz, zstd and lz4"
    raise FetchError(
        f"it is a bzImage that is packed in a way other than {known}: unpack it, and pin that", lasting=True
    )


def _zstd(packed: bytes, size: int) -> bytes:
    with TemporaryFile() as file:
        file.write(packed)
        file.flush()
        with zstd.unpacked(file) as content:
            return content.read(size + 1)


def _lz4_frame(frame: bytes, size: int) -> bytes:
    """LZ4's legacy frame: blocks of 8 MiB, each behind its packed size."""
    out = bytearray()
    at = 0
    while at + 4 <= len(frame):
        (packed,) = struct.unpack_from("<I", frame, at)
        out += _lz4_block(frame[at + 4 : at + 4 + packed], size - len(out))
        at += 4 + packed
        time.sleep(0)  # lets other greenlets run
    return bytes(out)


def _lz4_block(block: bytes, most: int) -> bytearray:
    """LZ4's block format: some bytes as they are, then some of those that are out already, and so on."""
    out = bytearray()
    at = 0
    while True:
        token = block[at]
        count, at = _lz4_count(block, at + 1, token >> 4)
        out += block[at : at + count]
        at += count
        if at >= len(block):
            return out
        back = block[at] | block[at + 1] << 8
        count, at = _lz4_count(block, at + 2, token & 15)
        count += 4
        start = len(out) - back
        if back == 0 or start < 0 or len(out) + count > most:
            raise ValueError("its lz4 makes no sense")
        if back >= count:
            out += out[start : start + count]
        else:
            out += (bytes(out[start:]) * (count // back + 1))[:count]


def _lz4_count(block: bytes, at: int, count: int) -> tuple[int, int]:
    """A count that goes on in further bytes, as long as they are 255; and where the rest begins."""
    if count == 15:
        while True:
            count += block[at]
            at += 1
            if block[at - 1] != 255:
                break
    return count, at

"""Kernels as distributions ship them, unpacked: Firecracker boots an ELF file only, and what Debian or Fedora install
is one that a loader unpacks (a bzImage). Offsets are those of the boot protocol (Documentation/arch/x86/boot.rst of
Linux).
"""

import lzma
import struct
import zlib
from tempfile import TemporaryFile

from mikrom_reconcile.host.oci import unpack
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

_ELF = b"\x7fELF"
_PROGRAMS: dict[bytes, unpack.Program] = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}


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
            raise FetchError("it is a bzImage that has no kernel in it, or ends too early")
        (size,) = struct.unpack("<I", payload[-4:])
        if size > CONTAINER_IMAGES.kernel_bytes:
            raise FetchError(f"its kernel has {size >> 20} MiB, more than any")
        elf = _content(payload, size)
    except (struct.error, IndexError, ValueError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise FetchError(f"it is a broken bzImage: {error}") from error
    if len(elf) != size or not elf.startswith(_ELF):
        raise FetchError("it is a broken bzImage: what is in it is no kernel")
    return elf


def _content(payload: bytes, size: int) -> bytes:
    if payload.startswith(b"\x1f\x8b\x08"):
        return zlib.decompressobj(31).decompress(payload, size + 1)
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(payload, size + 1)
    if (program := _PROGRAMS.get(payload[:4])) is None:
        known = "gzip, xz, zstd and lz4: unpack it, and pin that"
        raise FetchError(f"it is a bzImage that is packed in a way other than {known}")
    with TemporaryFile() as file:
        file.write(payload[:-4])
        file.flush()
        with unpack.unpacked(program, file) as content:
            return content.read(size + 1)

"""Unpacks zstd and lz4, by the programs of these names, since few images and kernels are packed so; and kernels as
distributions ship them. Firecracker boots an ELF file only, and what Debian or Fedora install is one that a loader
unpacks (a bzImage). Offsets are those of the boot protocol (Documentation/arch/x86/boot.rst of Linux).
"""

import io
import lzma
import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, Literal, cast

from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

Program = Literal["zstd", "lz4"]

_OPTIONS = {"zstd": ("--memory=128MB",), "lz4": ()}  # as much as it takes without being told


@contextmanager
def unpacked(program: Program, packed: IO[bytes]) -> Iterator[IO[bytes]]:
    """The content of a file from its beginning. What is broken raises FetchError, once it has been read to its end."""
    env = {"PATH": os.defpath, "LC_ALL": "C"}
    try:
        os.lseek(packed.fileno(), 0, os.SEEK_SET)  # what was read through `packed` was read ahead
        command = (program, "-d", "-c", "-q", *_OPTIONS[program])
        process = subprocess.Popen(command, env=env, stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise FetchError(f"it is packed with {program}, which is not installed here: install {program}") from error
    except io.UnsupportedOperation as error:
        raise FetchError(f"it is packed with {program} inside of another file: use oci_layout") from error
    with process:
        content = cast("IO[bytes]", process.stdout)
        try:
            yield content
            if not content.read(1) and process.wait() != 0:
                raise FetchError(f"its {program} is broken, or ends too early")
        finally:
            process.kill()


_ELF = b"\x7fELF"
_PROGRAMS: dict[bytes, Program] = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}


def is_packed_kernel(head: bytes) -> bool:
    """Whether a kernel that begins so is a bzImage. Its first 600 bytes tell."""
    return head[0x202:0x206] == b"HdrS" and not head.startswith(_ELF)


def kernel_in(image: bytes) -> bytes:
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
        return lzma.LZMADecompressor(memlimit=CONTAINER_IMAGES.xz_bytes).decompress(payload, size + 1)
    if (program := _PROGRAMS.get(payload[:4])) is None:
        known = "gzip, xz, zstd and lz4: unpack it, and pin that"
        raise FetchError(f"it is a bzImage that is packed in a way other than {known}")
    with TemporaryFile() as file:
        file.write(payload[:-4])
        file.flush()
        with unpacked(program, file) as content:
            return content.read(size + 1)

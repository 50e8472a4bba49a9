"""Unpacks zstd and lz4 by the programs of these names: few images and kernels are packed so."""

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Literal

from mikrom_reconcile.system.download import FetchError

Program = Literal["zstd", "lz4"]

_OPTIONS = {"zstd": ("--memory=128MB",), "lz4": ()}  # as much as it takes without being told


@contextmanager
def unpacked(program: Program, packed: IO[bytes]) -> Iterator[IO[bytes]]:
    """The content of a file from its beginning. What is broken raises FetchError, once it has been read to its end."""
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    try:
        os.lseek(packed.fileno(), 0, os.SEEK_SET)  # what was read through `packed` was read ahead
        command = (program, "-d", "-c", "-q", *_OPTIONS[program])
        process = subprocess.Popen(
            command, env=environment, stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise FetchError(f"it is packed with {program}, which is not installed here: install {program}") from error
    except io.UnsupportedOperation as error:
        raise FetchError(f"it is packed with {program} inside of another file: use oci_layout") from error
    content = process.stdout
    if content is None:
        raise AssertionError
    try:
        yield content
        if not content.read(1) and process.wait() != 0:
            raise FetchError(f"its {program} is broken, or ends too early")
    finally:
        process.kill()
        content.close()
        process.wait()

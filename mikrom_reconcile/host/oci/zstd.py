"""Unpacks Zstandard by the program `zstd`: Python has it from 3.14 on, and few images and kernels need it."""

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from mikrom_reconcile.system.download import FetchError

_COMMAND = ("zstd", "-d", "-c", "-q", "--memory=128MB")  # as much as it takes without being told


@contextmanager
def unpacked(packed: IO[bytes]) -> Iterator[IO[bytes]]:
    """The content of a file from its beginning. What is broken raises FetchError, once it has been read to its end."""
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    try:
        os.lseek(packed.fileno(), 0, os.SEEK_SET)  # what was read through `packed` was read ahead
        process = subprocess.Popen(
            _COMMAND, env=environment, stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise FetchError("it is packed with zstd, which is not installed here: install zstd", lasting=True) from error
    except io.UnsupportedOperation as error:
        raise FetchError("it is packed with zstd inside of another file: use oci_layout", lasting=True) from error
    content = process.stdout
    if content is None:
        raise AssertionError
    try:
        yield content
        if not content.read(1) and process.wait() != 0:
            raise FetchError("its zstd is broken, or ends too early", lasting=True)
    finally:
        process.kill()
        content.close()
        process.wait()

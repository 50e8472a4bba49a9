"""A disk of a test's own that is full to the last block: a tmpfs, mounted in the test's own folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, *, kib: int, files: int = 400) -> Iterator[None]:
    """A disk of so many KiB and files at `folder`; skips where nothing may be mounted."""
    folder.mkdir(mode=0o700, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={kib}k,nr_inodes={files},mode=700", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
        pytest.skip("to mount a small disk takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no room at all: not for a byte, and not for an empty file."""
    fd = os.open(folder / "junk", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with suppress(OSError):
        while True:
            os.write(fd, bytes(4096))
    os.close(fd)
    with suppress(OSError):
        for number in range(400):
            (folder / f"junk-{number}").touch()

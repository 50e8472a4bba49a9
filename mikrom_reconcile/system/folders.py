"""Folders that nobody else may look into: state, sockets, locks, consoles. And files that a person names.

`Path.mkdir(mode, parents=True)` closes only the last one; its parents would be open to everybody.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each closed to everybody else (0700). What is there stays as it is."""
    try:
        os.mkdir(folder, 0o700)  # noqa: PTH102 - pathlib takes three times as long, and this is done for every action
    except FileExistsError:
        if not folder.is_dir():
            raise
    except FileNotFoundError:
        make_folder(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)  # noqa: PTH102 - no second time around: nothing can be made in /proc


def write_named(path: str, content: bytes) -> None:
    """Put `content` where a person says: a new file is closed to others (0600), what is there stays what it is, be it a
    link, a pipe, a device or somebody's file. A full disk is found before what a file held is lost. Raises OSError.
    """
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:  # noqa: PTH123
        if not stat.S_ISREG((before := os.fstat(file.fileno())).st_mode):
            file.write(content)
            return
        try:
            os.posix_fallocate(file.fileno(), 0, len(content))
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:  # NFS may only not know how
                file.truncate(before.st_size)
                raise
        file.write(content)
        file.truncate()

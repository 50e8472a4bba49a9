"""Bytes by key in a folder that belongs to this user alone.

Whatever goes wrong here means "not known": a cache is not worth an error. It is believed only where nobody else can
have written it, and only whole.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from mikrom_reconcile.limits import SOURCES
from mikrom_reconcile.system.folders import make_folder

_SUM_BYTES = 16


class FolderCache:
    """A `Cache` of files in a folder that belongs to this user alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> bytes | None:
        """What was put under `key` last; None for what is not there, not ours, or not whole."""
        path = self._folder / key
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor is no path
                found = os.fstat(fd)
                ours = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
                if not ours or not stat.S_ISREG(found.st_mode) or found.st_size > SOURCES.cached_bytes:
                    return None
                content = file.read()
            os.utime(path)
        except OSError:
            return None
        return content[_SUM_BYTES:] if _sum(content[_SUM_BYTES:]) == content[:_SUM_BYTES] else None

    def put(self, key: str, content: bytes) -> None:
        """Keep `content`; the entry that was not used for longest goes."""
        if len(content) > SOURCES.cached_bytes:
            return
        draft = self._folder / f"{key}.{os.urandom(8).hex()}"  # never again that of a writer who was killed
        with suppress(OSError):
            make_folder(self._folder)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
                file.write(_sum(content))
                file.write(content)
            draft.replace(self._folder / key)
            entries = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in entries[SOURCES.cached_trees :]:
                path.unlink()
        with suppress(OSError):
            draft.unlink(missing_ok=True)  # on a full disk


def _sum(content: bytes) -> bytes:
    return blake2b(content, digest_size=_SUM_BYTES).digest()

"""Give the beginning of a file back to its disk while somebody goes on writing at its end.

A hole is punched in place: no copy, no rename, and no byte after it is touched, so that a writer who has the file open
(a VMM its console) notices nothing and loses nothing. The size of the file goes on growing; its blocks do not.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_KEEP_SIZE_PUNCH_HOLE = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h
_BLOCK = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def keep_tail(path: Path, *, max_bytes: int) -> None:
    """Free the beginning of `path` once it takes twice `max_bytes` of disk; its last `max_bytes` stay. Raises OSError.

    Where the file system cannot do that (NFS and the like), the file is emptied instead.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    end = (found.st_size - max_bytes) // _BLOCK * _BLOCK
    if found.st_blocks * 512 <= 2 * max_bytes or end <= 0:  # blocks may have been allocated ahead, as XFS does
        return
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _punch(fd, end)
    finally:
        os.close(fd)


def _punch(fd: int, end: int) -> None:
    if _fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, 0, end) == 0:
        return
    code = ctypes.get_errno()
    if code != errno.EOPNOTSUPP:
        raise OSError(code, os.strerror(code))
    os.ftruncate(fd, 0)

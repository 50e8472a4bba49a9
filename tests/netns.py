"""Namespaces of a test's own: what is made in them is gone with them, and nothing of the machine is touched."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mikrom_reconcile.system.netlink import Netlink

_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x20000
_MS_BIND, _MS_REC_PRIVATE, _MNT_DETACH = 0x1000, 0x4000 | 0x40000, 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_namespace() -> Iterator[int]:
    """This thread, and what it starts, in a new namespace with a loopback; a descriptor of it."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    inside = -1
    try:
        _check(_libc.unshare(_CLONE_NEWNET))
        inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with Netlink() as kernel:
            kernel.set_up(1, alias="")
        yield inside
    finally:
        _check(_libc.setns(before, _CLONE_NEWNET))
        os.close(before)
        if inside >= 0:
            os.close(inside)


@contextmanager
def own_mounts() -> Iterator[None]:
    """This thread, and what it starts, where mounts are seen by nobody else."""
    before, folder = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), Path.cwd()
    try:
        _check(_libc.unshare(_CLONE_NEWNS))
        _check(_libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None))
        yield
    finally:
        until = time.monotonic() + 60  # for what was started inside: a thread cannot leave what it shares with others
        while (result := _libc.setns(before, _CLONE_NEWNS)) and time.monotonic() < until:
            time.sleep(0.002)
        _check(result)
        os.close(before)
        os.chdir(folder)


def bind(folder: Path, at: Path) -> None:
    """Mount a folder at another place, from which what was mounted before vanishes."""
    _libc.umount2(bytes(at), _MNT_DETACH)
    _check(_libc.mount(bytes(folder), bytes(at), None, _MS_BIND, None))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "cannot have a namespace of its own: this takes root")

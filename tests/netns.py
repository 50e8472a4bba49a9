"""A network namespace of a test's own: what is made in it is gone with it, and nothing of the machine is touched."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mikrom_reconcile.host.netlink import Netlink

_CLONE_NEWNET = 0x40000000
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


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "cannot have a network namespace of its own: this takes root")

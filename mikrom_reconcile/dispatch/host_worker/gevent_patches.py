"""What gevent's patching leaves out or comes too late for, mended in a worker whose greenlets would all stand still."""

from __future__ import annotations

import os
import time
from typing import Any

from kombu.utils import functional

from mikrom_reconcile.limits import BROKER


def mend() -> None:
    """Mend them for this process, which is patched. Once is enough."""
    # `celery -P gevent` patches too late: looking for locks, gevent touches Celery's proxies, these import kombu,
    # and kombu keeps the old sleep. Without a broker that worker then stands still for seconds, supervision too
    functional.sleep = time.sleep
    os.fsync = _cooperative_fsync()


def _cooperative_fsync() -> Any:
    """`os.fsync` in a native thread: on a disk that stalls it takes seconds, in which a worker has to be seen to live.

    On a busy ext4 two of them kept each action's greenlet, and with it all others, for 5 ms.
    """
    import gevent  # noqa: PLC0415 - only called where it is loaded
    from gevent.threadpool import ThreadPool  # noqa: PLC0415

    pool = ThreadPool(BROKER.syncs_at_once)
    fsync, hub = os.fsync, gevent.get_hub()  # names are looked up in gevent's own pool

    def cooperative(fd: Any) -> None:
        if gevent.get_hub() is hub:
            pool.apply(fsync, (fd,))
        else:
            fsync(fd)

    return cooperative

"""Who lives: each worker and each Beat renews a key with an id of its start.

A key that is gone or has changed says that the process behind it is not the one that was asked, so that its
unanswered actions are known to be lost at once. It must never say anything about VMs.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from redis import RedisError

from mikrom_reconcile.dispatch.keys import HEARTBEAT_S, TTL_S, Keys

if TYPE_CHECKING:
    from redis import Redis

_log = logging.getLogger(__name__)

KNOWN_S = 86400
"""A host whose worker has not been seen for a day is no longer asked about; its records know it all the same."""

# Only the process that still owns the key may remove it.
_LEAVE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


def starts(redis: Redis, keys: Keys, owners: Collection[str]) -> dict[str, bytes]:
    """Start id of each of `owners` that lives."""
    if not owners:
        return {}
    found: Any = redis.mget([keys.heartbeat(owner) for owner in owners])
    return {owner: start for owner, start in zip(owners, found, strict=True) if start is not None}


def living(redis: Redis, keys: Keys, kind: str) -> tuple[str, ...]:
    """Names of all that live of one kind ("host", "control", "beat"), sorted."""
    before = len(keys.heartbeat(f"{kind}:"))
    found = redis.scan_iter(match=keys.heartbeat(f"{kind}:*"), count=1000)
    return tuple(sorted({key.decode()[before:] for key in found}))


def known(redis: Redis, keys: Keys) -> tuple[str, ...]:
    """Hosts whose workers lived at some time within `KNOWN_S`, sorted: those that are dark now are among them."""
    before = len(keys.known(""))
    return tuple(sorted(key.decode()[before:] for key in redis.scan_iter(match=keys.known("*"), count=1000)))


class Heartbeat:
    """Keeps one key alive from a thread, or from a greenlet where threads are patched."""

    def __init__(self, redis: Redis, keys: Keys, owner: str) -> None:
        self.owner = owner
        self.start_id = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._redis = redis
        self._key = keys.heartbeat(owner)
        self._known = keys.known(owner.removeprefix("host:")) if owner.startswith("host:") else None
        self._ended = threading.Event()

    def start(self) -> None:
        """Be seen from now on."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def leave(self) -> None:
        """Be gone at once; without it the key expires by itself."""
        self._ended.set()
        self._redis.eval(_LEAVE, 1, self._key, self.start_id)

    def _beat(self) -> None:
        while not self._ended.is_set():
            try:
                self._redis.set(self._key, self.start_id, px=int(TTL_S * 1000))
                if self._known:
                    self._redis.set(self._known, b"", ex=KNOWN_S)
            except RedisError as error:
                _log.warning("heartbeat of %s: %s; trying again in %g s", self.owner, error, HEARTBEAT_S)
            self._ended.wait(HEARTBEAT_S)

"""Who lives: each worker and each Beat renews a key with an id of its start.

The id names the process, the boot of its machine and its state folder: two machines with one name are found out.
A key that is gone or has changed says that the process behind it is not the one that was asked, so that its
unanswered actions are known to be lost at once. It must never say anything about VMs.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Collection
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import RedisError
from redis.exceptions import NoPermissionError

from mikrom_reconcile.core.errors import SetupError
from mikrom_reconcile.dispatch.keys import HEARTBEAT_S, TTL_S, Keys

if TYPE_CHECKING:
    from redis import Redis

_log = logging.getLogger(__name__)

KNOWN_S = 86400
"""A host whose worker has not been seen for a day is no longer asked about; its records know it all the same."""

# Sets the key unless another machine holds it; then its start id is the answer.
_RENEW = """
local held = redis.call('GET', KEYS[1])
if held and not string.find(held, '-' .. ARGV[2] .. '-', 1, true) then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return false
"""
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


def this_machine(state_dir: Path) -> str:
    """What no other machine and no other state folder has, and a restart of a worker does not change."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    folder = state_dir.stat()
    return blake2b(f"{boot} {folder.st_dev} {folder.st_ino}".encode(), digest_size=8).hexdigest()


class Heartbeat:
    """Keeps one key alive from a thread, or from a greenlet where threads are patched.

    With a `machine`, a key that another machine keeps alive is left to it, and this process is told to end.
    """

    def __init__(self, redis: Redis, keys: Keys, owner: str, *, machine: str = "") -> None:
        self.owner = owner
        self.start_id = f"{os.getpid()}-{machine}-{secrets.token_hex(8)}-{socket.gethostname()}"
        self._machine = machine
        self._redis = redis
        self._key = keys.heartbeat(owner)
        self._known = keys.known(owner.removeprefix("host:")) if owner.startswith("host:") else None
        self._ended = threading.Event()

    def refuse_a_second(self) -> None:
        """Raises SetupError where another machine plays this part, or this broker's user may not; waits for nobody."""
        try:
            held: Any = self._redis.get(self._key)
        except NoPermissionError as error:
            raise SetupError(f"this user of the broker may not be {self.owner}: is MIKROM_HOST right?") from error
        except RedisError:
            return  # Celery waits until its broker is back
        if held is not None and self._is_foreign(held):
            raise SetupError(self._taken_by(held))

    def start(self) -> None:
        """Be seen from now on."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def leave(self) -> None:
        """Be gone at once; without it the key expires by itself."""
        self._ended.set()
        with suppress(RedisError):
            self._redis.eval(_LEAVE, 1, self._key, self.start_id)

    def _beat(self) -> None:
        while not self._ended.is_set():
            try:
                if (held := self._renew()) is not None:
                    _log.critical("%s", self._taken_by(held))
                    os.kill(os.getpid(), signal.SIGTERM)  # its supervisor starts it again, and says so again
                    return
                if self._known:
                    self._redis.set(self._known, b"", ex=KNOWN_S)
            except RedisError as error:
                _log.warning("heartbeat of %s: %s; trying again in %g s", self.owner, error, HEARTBEAT_S)
            self._ended.wait(HEARTBEAT_S)

    def _renew(self) -> bytes | None:
        """Who else has the key, if anybody has."""
        ttl_ms = int(TTL_S * 1000)
        if self._machine:
            held: Any = self._redis.eval(_RENEW, 1, self._key, self.start_id, self._machine, ttl_ms)
            return held if isinstance(held, bytes) else None
        self._redis.set(self._key, self.start_id, px=ttl_ms)
        return None

    def _is_foreign(self, held: bytes) -> bool:
        return f"-{self._machine}-" not in held.decode(errors="replace")

    def _taken_by(self, held: bytes) -> str:
        pid, *_, node = held.decode(errors="replace").split("-", 3)
        where = f"pid {pid} on {node}, with another state folder or on another machine"
        return f"{self.owner} lives already: {where}; give each its own MIKROM_HOST"

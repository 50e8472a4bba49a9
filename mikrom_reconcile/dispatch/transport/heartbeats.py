"""Who lives: each worker and each Beat renews a key with an id of its start.

The id names the process, the boot of its machine and its state folder: two machines with one name are found out. A
name belongs to the machine that first had it, alive or not, until a person gives that machine up; it stops what it
runs before it has the name again.
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
from collections.abc import Callable, Collection
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from redis import RedisError
from redis.exceptions import NoPermissionError

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.system.files import write_whole
from mikrom_reconcile.times_and_sizes import BROKER, OBSERVING

if TYPE_CHECKING:
    from redis import Redis

_log = logging.getLogger(__name__)


# Sets the key, for no time at all to ask only. The answer is why not: another start id, another machine, or given up.
_RENEW = """
local held, bound = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if held and not string.find(held, '-' .. ARGV[3] .. '-', 1, true) then return {'held', held} end
for _, machine in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  if machine == ARGV[4] or machine == '?' then return {'given up', machine} end
end
if bound and string.match(bound, '^%S+') ~= ARGV[4] then return {'bound', bound} end
redis.call('SET', KEYS[2], ARGV[4] .. ' ' .. ARGV[5])
if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return false
"""
_GIVE_UP = """
local bound = redis.call('GET', KEYS[1])
if bound or redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SADD', KEYS[2], bound and string.match(bound, '^%S+') or '?')
end
return redis.call('DEL', KEYS[1])
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
    """Hosts whose workers lived within the last day, sorted: those that are unreachable now are among them."""
    before = len(keys.known(""))
    return tuple(sorted(key.decode()[before:] for key in redis.scan_iter(match=keys.known("*"), count=1000)))


def this_machine(state_dir: Path) -> str:
    """What no other machine and no other state folder has, and a restart of a worker does not change."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    folder = state_dir.stat()
    return blake2b(f"{boot} {folder.st_dev} {folder.st_ino}".encode(), digest_size=8).hexdigest()


def machine_id(state_dir: Path) -> str:
    """What a machine keeps through reboots, and no other has, though its state folder or its disk were a copy."""
    kept, system = state_dir / "machine", Path("/etc/machine-id")
    if not kept.exists():
        draft = state_dir / f"machine-{secrets.token_hex(8)}"
        write_whole(draft, secrets.token_hex(16).encode())
        with suppress(FileExistsError):  # somebody else was first
            kept.hardlink_to(draft)
        draft.unlink()
    return blake2b(kept.read_bytes() + (system.read_bytes() if system.exists() else b""), digest_size=8).hexdigest()


def give_up(redis: Redis, keys: Keys, host: str) -> None:
    """Take the name of `host` from its machine, which stops what it runs should it come back."""
    redis.eval(_GIVE_UP, 2, keys.machine(host), keys.given_up(host))


class Heartbeat:
    """Keeps one key alive from a thread, or from a greenlet where threads are patched.

    A host's has the `state_dir` of its machine: where another machine has the name, this process is told to end, and
    where this machine was given up, `fence` has to return before the name is its own again.
    """

    def __init__(
        self, redis: Redis, keys: Keys, owner: str, *, state_dir: Path | None = None,
        fence: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.owner = owner
        self._machine = this_machine(state_dir) if state_dir else ""
        self._machine_id = machine_id(state_dir) if state_dir else ""
        self._fence = fence
        self._redis = redis
        self._key = keys.heartbeat(owner)
        host = owner.removeprefix("host:")
        self._known, self._bound, self._given_up = keys.known(host), keys.machine(host), keys.given_up(host)
        self.start_id = self._new_start()
        self._ended = threading.Event()
        self._turn = threading.Lock()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def refuse_a_second(self) -> None:
        """Raises SetupError where another machine plays this part, or this broker's user may not; waits for nobody."""
        try:
            self._claim(ttl_s=0)
        except NoPermissionError as error:
            hint = "is MIKROM_HOST right? An ACL of an older release is written anew by deploy/redis/make_acl.py"
            raise SetupError(f"this user of the broker may not be {self.owner}: {hint}") from error
        except RedisError:
            return  # Celery waits until its broker is back

    def start(self) -> None:
        """Be seen from now on."""
        self._beat_once()
        self._beating.start()

    def begin_anew(self) -> None:
        """Have everybody know that what was sent to this process so far may never have come."""
        if self._machine and self._beating.is_alive():
            self.start_id = self._new_start()
            self._beat_once()

    def leave(self) -> None:
        """Be gone at once; without it the key expires by itself."""
        self._ended.set()
        if self._beating.is_alive():
            self._beating.join()
        with suppress(RedisError):
            self._redis.eval(_LEAVE, 1, self._key, self.start_id)

    def _beat(self) -> None:
        while not self._ended.wait(BROKER.heartbeat_interval_s):
            self._beat_once()

    def _beat_once(self) -> None:
        try:
            with self._turn:
                if self._machine:
                    self._claim(ttl_s=BROKER.heartbeat_ttl_s)
                    self._redis.set(self._known, b"", ex=OBSERVING.worker_seen_s)
                else:
                    self._redis.set(self._key, self.start_id, px=int(BROKER.heartbeat_ttl_s * 1000))
        except SetupError as error:
            _log.critical("%s", error)
            self._ended.set()
            os.kill(os.getpid(), signal.SIGTERM)  # its supervisor starts it again, and says so again
        except Exception as error:  # noqa: BLE001 - a socket ends in many ways, and all of them pass
            wait_s = BROKER.heartbeat_interval_s
            _log.warning("heartbeat of %s: %s; trying again in %g s", self.owner, error, wait_s)

    def _claim(self, *, ttl_s: float) -> None:
        """Have the name of a host. Raises SetupError where another machine has it."""
        keys = self._key, self._bound, self._given_up
        arguments = self.start_id, int(ttl_s * 1000), self._machine, self._machine_id, socket.gethostname()
        while refused := self._redis.eval(_RENEW, len(keys), *keys, *arguments):
            why, who = (part.decode(errors="replace") for part in cast("list[bytes]", refused))
            if why != "given up":
                raise SetupError(self._lives_already(who) if why == "held" else self._belongs_to(who))
            _log.critical("%s was given up (--assume-dead): everything that runs here is stopped", self.owner)
            self._fence()
            self._redis.srem(self._given_up, who)

    def _new_start(self) -> str:
        return f"{os.getpid()}-{self._machine}-{secrets.token_hex(8)}-{socket.gethostname()}"

    def _lives_already(self, held: str) -> str:
        pid, *_, node = held.split("-", 3)
        where = f"pid {pid} on {node}, with another state folder or on another machine"
        return f"{self.owner} lives already: {where}; give each its own MIKROM_HOST"

    def _belongs_to(self, bound: str) -> str:
        machine, _, node = bound.partition(" ")
        host = self.owner.removeprefix("host:")
        return (
            f"{host} is the name of another machine ({machine} on {node}; this is {self._machine_id}), or this one"
            " lost its state folder: give this one its own MIKROM_HOST, or, once that one is off for good and its VMs"
            f" may be made elsewhere, free the name: mikrom apply --assume-dead {host}"
        )

"""The store of a fleet: leases, tokens, placements and runs in Redis, where all of it may be lost without harm."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from kombu.exceptions import OperationalError
from redis import RedisError

from mikrom_reconcile.control import run_log
from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.errors import BusyError, SetupError
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.plan import RunRecord
from mikrom_reconcile.times_and_sizes import RUNS

if TYPE_CHECKING:
    from redis import Redis

_TAKE, _KEEP = (Path(__file__).with_name(f"{name}.lua").read_text("utf-8") for name in ("take", "keep"))
_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisLease:
    """A held lease. It is lost when it was not renewed in time, or when another run has it."""

    def __init__(self, redis: Redis, key: str, value: str, *, token: int, ttl_s: float, taken_at: float) -> None:
        self.token = token
        self._redis = redis
        self._key = key
        self._value = value
        self._ttl_s = ttl_s
        self._held_until = taken_at + ttl_s
        self._ended = threading.Event()
        self._keeping = threading.Thread(target=self._keep, name=f"lease {key}", daemon=True)
        self._keeping.start()

    def held(self) -> bool:
        return not self._ended.is_set() and time.monotonic() < self._held_until

    def release(self) -> None:
        """Give it back; twice is fine. Without a broker it expires by itself."""
        self._ended.set()
        self._keeping.join()
        with suppress(RedisError):  # then the server's TTL gives it back, and hosts refuse its token after a newer one
            self._redis.eval(RELEASE, 1, self._key, self._value)

    def _keep(self) -> None:
        while not self._ended.wait(self._ttl_s / 3):
            now = time.monotonic()
            try:
                renewed = self._redis.eval(_RENEW, 1, self._key, self._value, round(self._ttl_s * 1000))
            except Exception:  # noqa: BLE001, S112 - a socket ends in many ways; held() tells when it has been too long
                continue
            if not renewed:
                self._ended.set()
            self._held_until = now + self._ttl_s


class RedisStore:
    """A `RunStore` for a fleet, for any threads and greenlets. Its methods raise SetupError when Redis is lost."""

    def __init__(self, redis: Redis, *, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix
        self._history = f"{prefix}:history:"
        self._shelf = f"{prefix}:shelf:"
        self._known: dict[str, tuple[bytes, Placements]] = {}

    def lease(self, scope: str, *, holder: str, ttl_s: float, at_least: int) -> RedisLease:
        key = f"{self._prefix}:lease:{scope}"
        value = f"{secrets.token_hex(8)} {holder}"
        taken_at = time.monotonic()
        with translate_broker_errors():
            keys = key, f"{self._prefix}:token:{scope}"
            answer = self._redis.eval(_TAKE, 2, *keys, value, round(ttl_s * 1000), at_least)
        if isinstance(answer, bytes):
            other = answer.decode().partition(" ")[2]
            raise BusyError(f"project {scope} is being changed by {other}; wait for that run to end")
        return RedisLease(self._redis, key, value, token=int(answer), ttl_s=ttl_s, taken_at=taken_at)

    def placements(self, project: str) -> Placements:
        key, known = f"{self._prefix}:placements:{project}", self._known.get(project)
        with translate_broker_errors():
            digest: Any = self._redis.hget(key, "digest")
            if known is not None and known[0] == digest:  # then nothing of their size is sent
                return known[1]
            digest, content = self._redis.hmget(key, "digest", "content")
        placements = decoded(content, Placements) or Placements()
        if digest is not None:
            self._known[project] = (digest, placements)
        return placements

    def remember(self, project: str, placements: Placements) -> None:
        """Replace the placements of a project, unless they are the same: then nothing of their size is sent."""
        key = f"{self._prefix}:placements:{project}"
        content = msgspec.json.encode(placements)
        digest = blake2b(content, digest_size=16).hexdigest()
        with translate_broker_errors():
            if self._redis.hget(key, "digest") != digest.encode():
                self._redis.hset(key, mapping={"digest": digest, "content": content})

    def save(self, run: RunRecord) -> None:
        room, name = run_log.room_of(run), run_log.name_of(run)
        leaves = ["going"] if run.exit_code is not None and room in run_log.ROOM else []
        keys = [f"{self._history}{each}{part}" for each in (room, *leaves) for part in ("", ":order")]
        at, most = run.finished_at.timestamp(), run_log.ROOM.get(room, RUNS.kept_per_host)
        with translate_broker_errors():
            before: Any = None if name == run.run_id else self._redis.hget(keys[0], name)
            about = name, run_log.packed(run, before), at, most, run.run_id
            self._redis.eval(_KEEP, len(keys), *keys, *about)

    def runs(self, limit: int) -> tuple[RunRecord, ...]:
        found: list[RunRecord] = []
        with translate_broker_errors():
            for order in self._redis.scan_iter(match=f"{self._history}*:order", count=1000) if limit > 0 else ():
                named: Any = self._redis.zrange(order, 0, limit - 1, desc=True, withscores=True)
                contents: Any = self._redis.hmget(order.removesuffix(b":order"), [name for name, _ in named] or [""])
                room = order.decode().removeprefix(self._history).removesuffix(":order")
                rows = zip(named, contents, strict=False)
                runs = [run_log.unpacked(name.decode(), kept, at) for (name, at), kept in rows if kept is not None]
                found += [run for run in runs if run_log.speaks_for_itself(room, run)]
        return tuple(sorted(found, key=lambda run: run.finished_at, reverse=True)[:limit])

    def put(self, shelf: str, name: str, content: bytes | None) -> None:
        with translate_broker_errors():
            if content is None:
                self._redis.hdel(self._shelf + shelf, name)
            else:
                self._redis.hset(self._shelf + shelf, name, content)

    def get(self, shelf: str, name: str) -> bytes | None:
        with translate_broker_errors():
            found: Any = self._redis.hget(self._shelf + shelf, name)
        return found  # type: ignore[no-any-return]

    def shelf(self, shelf: str) -> list[bytes]:
        with translate_broker_errors():
            found: Any = self._redis.hvals(self._shelf + shelf)
        return list(found)


@contextmanager
def translate_broker_errors() -> Iterator[None]:
    """A lost broker is a SetupError, in the same words everywhere."""
    try:
        yield
    except (RedisError, OperationalError) as error:
        raise SetupError(f"the broker was lost: {error}; whatever had begun goes on, run again to see") from error

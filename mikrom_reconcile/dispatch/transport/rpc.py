"""A call: one question to hosts or to a control worker, and its answers over Redis streams.

A call lives as long as its caller waits: the caller renews the call's key, the server expires it, and nobody begins
work for a call that has ended. Answers are told in order, each stream written by one side only. A call is no queue
of work and must hold nothing that cannot be asked again. Errors travel as values: their kinds are listed, anything
else is an internal error whose traceback is in the worker's log.
"""

from __future__ import annotations

import time
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import msgspec
from redis import RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.errors import (
    BusyError,
    MikromError,
    PastDeadlineError,
    SetupError,
    SourceError,
    SpecError,
    UsageError,
)
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.times_and_sizes import BROKER

if TYPE_CHECKING:
    from redis import Redis

T = TypeVar("T")

_KINDS: dict[str, type[MikromError]] = {
    kind.__name__: kind for kind in (BusyError, MikromError, PastDeadlineError, SetupError, SourceError, UsageError)
}


class Answer(NamedTuple):
    """One entry of a stream: who said it, what kind of answer it is, and its packed body."""

    owner: str
    kind: str
    body: bytes


class WorkerId(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a fleet: the owner of its heartbeat, and the start id in it."""

    owner: str
    start_id: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error as it travels. `problems` belongs to a SpecError."""

    kind: str
    message: str
    problems: tuple[SpecProblem, ...] = ()


def pack(value: Any) -> bytes:
    """`value` as JSON, compressed where that is worthwhile. Raises MikromError when it is larger than allowed."""
    encoded = msgspec.json.encode(value)
    if len(encoded) > BROKER.message_bytes:
        raise MikromError(f"a message of {len(encoded)} bytes is larger than {BROKER.message_bytes}: split the specs")
    if len(encoded) < BROKER.compress_from_bytes:
        return b"j" + encoded
    return b"z" + zlib.compress(encoded, 1)


def unpack(packed: bytes, kind: type[T]) -> T:
    """The value of a packed message. Raises MikromError for anything else."""
    try:
        if packed[:1] == b"z":
            inflate = zlib.decompressobj()
            packed = b"j" + inflate.decompress(packed[1:], BROKER.message_bytes)
            if inflate.unconsumed_tail:
                raise MikromError(f"a message is larger than {BROKER.message_bytes} bytes")
        return msgspec.json.decode(packed[1:], type=ready(kind))
    except (msgspec.MsgspecError, zlib.error) as error:
        raise MikromError(f"not a {kind.__name__}: {error}; do all sides run one release?") from error


def is_awaited(redis: Redis, keys: Keys, call: str) -> bool:
    """Whether somebody still waits for this call."""
    return bool(redis.exists(keys.call(call)))


def answer(redis: Redis, keys: Keys, call: str, owner: str, kind: str, body: bytes) -> None:
    """Append one answer to the stream of `owner`."""
    stream = keys.answers(call, owner)
    pipe = redis.pipeline(transaction=False)
    pipe.xadd(stream, {"kind": kind, "body": body})
    pipe.expire(stream, BROKER.result_ttl_s)
    pipe.execute()


def failure_of(error: Exception, *, task_id: str) -> Failure:
    """What to tell the caller about `error`."""
    if isinstance(error, SpecError):
        return Failure(kind="SpecError", message=str(error), problems=error.problems)
    if isinstance(error, MikromError):
        kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS), "MikromError")
        return Failure(kind=kind, message=str(error))
    return Failure(
        kind="MikromError",
        message=f"internal error in the control worker ({type(error).__name__}); its log has it under task {task_id}",
    )


def error_of(failure: Failure) -> MikromError:
    """The error that the caller raises."""
    if failure.kind == "SpecError":
        return SpecError(failure.problems)
    return _KINDS.get(failure.kind, MikromError)(failure.message)


class Call:
    """A call as its caller sees it: alive inside its `with` block, as long as it is read."""

    def __init__(self, redis: Redis, keys: Keys, name: str) -> None:
        self.name = name
        self._redis = redis
        self._keys = keys
        self._owners: dict[bytes, str] = {}
        self._seen: dict[Any, Any] = {}
        self._renew_at = 0.0

    def __enter__(self) -> Self:
        self._renew()
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        if isinstance(error, RedisError):  # a silent broker would take as long again, and it drops them by itself
            return
        with suppress(RedisError):
            self._redis.delete(self._keys.call(self.name), *self._owners)

    def listen(self, owner: str) -> None:
        """Read what `owner` answers, too, from its first answer on."""
        stream = self._keys.answers(self.name, owner).encode()
        if stream not in self._owners:
            self._owners[stream] = owner
            self._seen[stream] = "0"

    def read(self, wait_s: float) -> list[Answer]:
        """What came since the last reading, after at most `wait_s`. Raises RedisError when the broker is lost."""
        self._renew()
        answers = []
        found: Any = self._redis.xread(self._seen, block=max(1, int(wait_s * 1000)))
        for stream, entries in found or ():
            for number, fields in entries:
                answers.append(Answer(self._owners[stream], fields[b"kind"].decode(), fields[b"body"]))
                self._seen[stream] = number
        return answers

    def _renew(self) -> None:
        now = time.monotonic()
        if now >= self._renew_at:
            ttl_ms = int(BROKER.heartbeat_ttl_s * 1000)
            is_kept = self._redis.set(self._keys.call(self.name), b"", px=ttl_ms, xx=self._renew_at > 0)
            if not is_kept:  # with what hosts were sent, or would have answered
                raise RedisConnectionError("it was emptied, or this process stood still for too long")
            self._renew_at = now + BROKER.heartbeat_interval_s

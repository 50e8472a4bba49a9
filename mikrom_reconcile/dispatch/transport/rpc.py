"""A call: one question to hosts or to control, answered over Redis streams, for as long as its caller waits."""

import logging
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Self, TypeVar

import msgspec
from redis import Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.core.model.encoding import UNREADABLE, ready
from mikrom_reconcile.core.model.errors import MikromError, SpecError
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.times_and_sizes import BROKER

T = TypeVar("T")

_KINDS = {kind.__name__: kind for kind in MikromError.__subclasses__()}


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
    except (*UNREADABLE, zlib.error) as error:
        raise MikromError(f"not a {kind.__name__}: {error}; do all sides run one release?") from error


def failure_of(error: MikromError) -> Failure:
    """What to tell the caller about `error`."""
    return Failure(kind=type(error).__name__, message=str(error), problems=getattr(error, "problems", ()))


def error_of(failure: Failure) -> MikromError:
    """The error that the caller raises."""
    if failure.kind == "SpecError":
        return SpecError(failure.problems)
    return _KINDS.get(failure.kind, MikromError)(failure.message)


class Call:
    """A call as its caller sees it: alive inside its `with` block, as long as it is read."""

    def __init__(self, redis: Redis, keys: Keys, name: str) -> None:
        self.name = name
        self._redis, self._keys = redis, keys
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

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Alive inside the block, read or not: where answers are shown may stand still, as a pager does."""
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(BROKER.heartbeat_interval_s):
                with suppress(RedisError):  # the next reading says it
                    self._renew()

        threading.Thread(target=keep, name="call", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def listen(self, owner: str) -> None:
        """Read what `owner` answers, too, from its first answer on."""
        stream = self._keys.answers(self.name, owner).encode()
        if stream not in self._owners:
            self._owners[stream] = owner
            self._seen[stream] = "0"

    def ignore(self, owner: str) -> None:
        """Read no more of what `owner` answers."""
        self._seen.pop(self._keys.answers(self.name, owner).encode(), None)

    def read(self, wait_s: float) -> list[Answer]:
        """What came since the last reading, after at most `wait_s`. A part of that is a pause in which the answers of
        many gather, since each reading asks for all streams. Raises RedisError when the broker is lost.
        """
        self._renew()
        pause_s = min(wait_s, len(self._seen) * BROKER.gathering_s)
        time.sleep(pause_s)
        answers = []
        found: Any = self._redis.xread(self._seen, block=max(1, int((wait_s - pause_s) * 1000)))
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


_log = logging.getLogger(__name__)


class _Given(NamedTuple):
    stream: bytes
    kind: str
    body: bytes
    until_s: float


class ReplySender:
    """The answers of one process. Safe to use from many threads or greenlets at once."""

    def __init__(self, redis: Redis, keys: Keys, owner: str) -> None:
        self._redis, self._keys, self._owner = redis, keys, owner
        self._awaited_until: dict[str, float] = {}
        self._asking = threading.Lock()
        self._given: deque[_Given] = deque(maxlen=BROKER.replies_waiting)
        self._is_given = threading.Event()
        self._sending = threading.Lock()
        self._ended = False
        self._telling = threading.Thread(target=self._send_until_closed, name="answers", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._telling.start()

    def is_awaited(self, call: str) -> bool:
        """Whether somebody waits for this call, or did a second ago. Raises RedisError."""
        if not self._asking.acquire(timeout=BROKER.read_s):  # of those that begin together one asks for all
            raise RedisConnectionError(f"the broker has not answered within {BROKER.read_s:g} s")
        try:
            now_s = time.clock_gettime(time.CLOCK_BOOTTIME)  # a machine that slept believes nothing
            if self._awaited_until.get(call, 0.0) > now_s:
                return True
            self._awaited_until = {name: until for name, until in self._awaited_until.items() if until > now_s}
            if awaited := bool(self._redis.exists(self._keys.call(call))):
                self._awaited_until[call] = now_s + BROKER.reply_awaited_s
            return awaited
        finally:
            self._asking.release()

    def tell(self, call: str, kind: str, body: bytes) -> None:
        """Have the call told, soon."""
        stream = self._keys.answers(call, self._owner).encode()  # here, where a name that is no text ends its task only
        self._given.append(_Given(stream, kind, body, time.monotonic() + BROKER.reply_kept_s))
        self._is_given.set()

    def flush(self) -> None:
        """Send what was given so far. Raises what the broker said against some of it, and keeps that for a while."""
        with self._sending:
            answers = [self._given.popleft() for _ in range(len(self._given))]
            try:
                refusals = self._send(answers) if answers else []
            except Exception as error:  # noqa: BLE001 - a socket ends in many ways, and all of them pass
                refusals = [error] * len(answers)
            now_s = time.monotonic()
            left = [answer for answer, why in zip(answers, refusals, strict=True) if why and answer.until_s > now_s]
            self._given.extendleft(reversed(left))
        for refusal in filter(None, refusals):
            raise refusal

    def close(self) -> None:
        """Send what was given so far if the broker takes it, and end. Nothing may be told any more."""
        self._ended = True
        self._is_given.set()
        if self._telling.is_alive():
            self._telling.join()
        with suppress(Exception):  # then the heartbeat says that they are lost
            self.flush()

    def _send(self, answers: Sequence[_Given]) -> Sequence[Exception | None]:
        pipe = self._redis.pipeline(transaction=False)
        for answer in answers:
            pipe.xadd(answer.stream, {"kind": answer.kind, "body": answer.body})
        for stream in {answer.stream for answer in answers}:
            pipe.expire(stream, BROKER.result_ttl_s)
        said = pipe.execute(raise_on_error=False)[: len(answers)]
        return [one if isinstance(one, RedisError) else None for one in said]

    def _send_until_closed(self) -> None:
        while not self._ended:
            self._is_given.wait()
            self._is_given.clear()
            try:
                self.flush()
                time.sleep(BROKER.reply_interval_s)
            except Exception as error:  # noqa: BLE001 - as above
                _log.warning("%d answers wait: %s; trying again in %g s", len(self._given), error, BROKER.reply_retry_s)
                time.sleep(BROKER.reply_retry_s)
                self._is_given.set()

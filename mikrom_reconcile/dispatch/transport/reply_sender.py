"""Calls as a host's worker sees them: whether somebody waits, and what they are told; few messages for many orders.

Answers leave in the order in which they were given; those that come while others are on their way, or within
20 ms of these, share a message. Nobody waits until they have left: what a killed worker had not sent is known to be
lost by its heartbeat. That a call is awaited is believed for a second; its key itself outlives its caller by fifteen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from redis import RedisError

from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.times_and_sizes import BROKER

if TYPE_CHECKING:
    from redis import Redis

_log = logging.getLogger(__name__)


class _Given(NamedTuple):
    stream: bytes
    kind: str
    body: bytes
    until_s: float


class ReplySender:
    """The answers of one process. Safe to use from many threads or greenlets at once."""

    def __init__(self, redis: Redis, keys: Keys, owner: str) -> None:
        self._redis = redis
        self._keys = keys
        self._owner = owner
        self._awaited_until: dict[str, float] = {}
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
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)  # a machine that slept believes nothing
        if self._awaited_until.get(call, 0.0) > now_s:
            return True
        self._awaited_until = {name: until for name, until in self._awaited_until.items() if until > now_s}
        awaited = bool(self._redis.exists(self._keys.call(call)))
        if awaited:
            self._awaited_until[call] = now_s + BROKER.reply_awaited_s
        return awaited

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
        """What the server said against each of them."""
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

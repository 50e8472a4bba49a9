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
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import RedisError

from mikrom_reconcile.dispatch.keys import LEFTOVER_S, Keys

if TYPE_CHECKING:
    from redis import Redis

_log = logging.getLogger(__name__)

EVERY_S = 0.02
"""Between two messages; the first does not wait."""

BELIEVED_S = 1.0

_AGAIN_S = 1.0
_KEPT = 10_000  # answers, when the broker is away: more than can be under way


class _Given(NamedTuple):
    stream: bytes
    kind: str
    body: bytes


class Answering:
    """The answers of one process. Safe to use from many threads or greenlets at once."""

    def __init__(self, redis: Redis, keys: Keys, owner: str) -> None:
        self._redis = redis
        self._keys = keys
        self._owner = owner
        self._awaited_until: dict[str, float] = {}
        self._given: deque[_Given] = deque(maxlen=_KEPT)
        self._is_given = threading.Event()
        self._sending = threading.Lock()
        threading.Thread(target=self._send_for_ever, name="answers", daemon=True).start()

    def is_awaited(self, call: str) -> bool:
        """Whether somebody waits for this call, or did a second ago. Raises RedisError."""
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)  # a machine that slept believes nothing
        if self._awaited_until.get(call, 0.0) > now_s:
            return True
        self._awaited_until = {name: until for name, until in self._awaited_until.items() if until > now_s}
        awaited = bool(self._redis.exists(self._keys.call(call)))
        if awaited:
            self._awaited_until[call] = now_s + BELIEVED_S
        return awaited

    def tell(self, call: str, kind: str, body: bytes) -> None:
        """Have the call told, soon."""
        stream = self._keys.answers(call, self._owner).encode()  # here, where a name that is no text ends its task only
        self._given.append(_Given(stream, kind, body))
        self._is_given.set()

    def flush(self) -> None:
        """Send what was given so far. Raises RedisError, and keeps it, when the broker is away."""
        with self._sending:
            answers = [self._given.popleft() for _ in range(len(self._given))]
            if not answers:
                return
            try:
                problems = self._send(answers)
            except RedisError:
                self._given.extendleft(reversed(answers))
                raise
        for problem in problems:
            _log.error("an answer was not taken: %s", problem)

    def _send(self, answers: Sequence[_Given]) -> list[Any]:
        """What the server said against it."""
        pipe = self._redis.pipeline(transaction=False)
        for stream, kind, body in answers:
            pipe.xadd(stream, {"kind": kind, "body": body})
        for stream in {answer.stream for answer in answers}:
            pipe.expire(stream, LEFTOVER_S)
        return [said for said in pipe.execute(raise_on_error=False) if isinstance(said, RedisError)]

    def _send_for_ever(self) -> None:
        while True:
            self._is_given.wait()
            self._is_given.clear()
            try:
                self.flush()
                time.sleep(EVERY_S)
            except RedisError as error:
                _log.warning("%d answers wait: %s; trying again in %g s", len(self._given), error, _AGAIN_S)
                time.sleep(_AGAIN_S)
                self._is_given.set()

"""The broker: what Redis and Celery do for this project, with the faults that both have.

The clients of the code under test (`CeleryHosts`, `RedisStore`, `Heartbeat`, `ReplySender`) run above it unchanged.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from celery.exceptions import Retry
from redis.exceptions import ConnectionError as LostError

from mikrom_reconcile.control.stores import redis as store_scripts
from mikrom_reconcile.dispatch.transport import shared_state as state_scripts
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.settings import Settings
from tests.simulation.clockwork import Actor, Clockwork, Process

Message = tuple[float, str, dict[str, Any], int]
"""When it arrives, the task, its arguments, and how often it was tried before."""

SILENCE_S = 2.0  # until a client gives a silent broker up


class Broker:
    """One Redis. `is_silent` answers nobody; `forget` empties it; tasks get lost, doubled and late by the shares. What
    comes twice comes late the second time, if not at once: after newer ones, and when nobody waits for it any more.
    """

    def __init__(self, clock: Clockwork) -> None:
        self.clock = clock
        self.keys = Keys("mikrom:queue")
        self.is_silent = False
        self.lost, self.doubled, self.late = 0.0, 0.0, 0.0
        self.written: Callable[[bytes], None] = lambda _: None
        self.sent: Callable[[str, dict[str, Any]], None] = lambda _task, _arguments: None
        self._values: dict[str, Any] = {}
        self._ends: dict[str, float] = {}
        self._queues: dict[str, list[Message]] = {}
        self._waiting: list[Actor] = []
        self._entries = 0

    def forget(self) -> None:
        """`FLUSHALL`."""
        self._values.clear()
        self._ends.clear()
        self._queues.clear()

    def client(self, process: Process) -> Client:
        return Client(self, process)

    def app(self, process: Process) -> Any:
        """What the code under test wants of its Celery app."""

        def send(task: str, *, kwargs: dict[str, Any], queue: str, **_: Any) -> None:
            self.reach(process)
            self.written(repr(kwargs).encode())
            self.sent(task, kwargs)
            chance = self.clock.chance
            if chance.random() < self.lost:
                self.clock.say(f"lost {task}")
                return
            shares = (self.late, 0.8) if chance.random() < self.doubled else (self.late,)
            for late in shares:
                delay_s = chance.uniform(0.0, 60.0) if chance.random() < late else chance.uniform(0.0005, 0.002)
                self.put(queue, task, kwargs, delay_s)

        return SimpleNamespace(settings=Settings(), keys=self.keys, redis=self.client(process), send_task=send)

    def put(self, queue: str, task: str, arguments: dict[str, Any], delay_s: float, tried: int = 0) -> None:
        self._queues.setdefault(queue, []).append((self.clock.now + delay_s, task, arguments, tried))
        self.clock.at(delay_s, self.wake)

    def fetch(self, process: Process, queue: str) -> Message:
        """The next message of a host's queue; who has it, has it alone."""
        while True:
            self.reach(process)
            found = self._queues.get(queue, [])
            if ready := [message for message in found if message[0] <= self.clock.now]:
                found.remove(ready[0])
                return ready[0]
            self._waiting.append(self.clock.living())
            self.clock.park(5.0)

    def wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for actor in waiting:
            self.clock.wake(actor)

    def reach(self, process: Process) -> None:
        """The way there and back. Raises LostError."""
        self.clock.pause(self.clock.chance.uniform(0.0002, 0.001))
        machine = process.machine
        cut_until = max(process.cut_until, machine.cut_until if machine else 0.0)
        if self.is_silent or self.clock.now < cut_until:
            self.clock.pause(SILENCE_S)
            raise LostError("no answer")

    # ---- commands ---------------------------------------------------------------------------------------------------

    def command(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        act: Callable[..., Any] = getattr(self, f"_{name}")
        return act(*(_text(arg) if index == 0 else arg for index, arg in enumerate(args)), **options)

    def _alive(self, key: str) -> Any:
        if self._ends.get(key, math.inf) <= self.clock.now:
            self._drop(key)
        return self._values.get(key)

    def _drop(self, key: str) -> bool:
        self._ends.pop(key, None)
        return self._values.pop(key, None) is not None

    def _get(self, key: str) -> bytes | None:
        found = self._alive(key)
        return found if found is None else bytes(found)

    def _set(
        self, key: str, value: Any, *, ex: float | None = None, px: float | None = None, xx: bool = False
    ) -> bool | None:
        if xx and self._alive(key) is None:
            return None
        self._values[key] = _bytes(value)
        self.written(self._values[key])
        self._ends[key] = self.clock.now + (ex or math.inf if px is None else px / 1000)
        return True

    def _mget(self, keys: list[str]) -> list[bytes | None]:
        return [self._get(_text(key)) for key in keys]

    def _exists(self, key: str) -> int:
        return int(self._alive(key) is not None)

    def _delete(self, *keys: Any) -> int:
        return sum(self._drop(_text(key)) for key in keys)

    def _expire(self, key: str, seconds: float) -> None:
        self._ends[key] = self.clock.now + seconds

    def _scan_iter(self, *, match: str, count: int) -> Iterator[bytes]:
        return (key.encode() for key in sorted(self._values) if fnmatch.fnmatchcase(key, match) and self._exists(key))

    def _sadd(self, key: str, member: bytes) -> None:
        self._values.setdefault(key, set()).add(member)

    def _srem(self, key: str, member: str) -> None:
        self._values.get(key, set()).discard(_bytes(member))
        if not self._values.get(key, True):
            self._drop(key)

    def _hget(self, key: str, field: Any) -> bytes | None:
        return (self._alive(key) or {}).get(_bytes(field))

    def _hmget(self, key: str, *fields: Any) -> list[bytes | None]:
        names = fields[0] if isinstance(fields[0], list) else fields
        return [self._hget(key, name) for name in names]

    def _hvals(self, key: str) -> list[bytes]:
        return list((self._alive(key) or {}).values())

    def _hset(self, key: str, field: Any = None, value: Any = None, *, mapping: dict[Any, Any] | None = None) -> None:
        kept = self._values.setdefault(key, {})
        for name, content in (mapping or {field: value}).items():
            kept[_bytes(name)] = _bytes(content)
            self.written(_bytes(content))

    def _hdel(self, key: str, *fields: Any) -> None:
        for field in fields:
            self._values.get(key, {}).pop(_bytes(field), None)

    def _zadd(self, key: str, members: dict[Any, float]) -> None:
        self._values.setdefault(key, {}).update({_bytes(name): score for name, score in members.items()})

    def _zrange(self, key: str, first: int, last: int) -> list[bytes]:
        ordered = sorted(self._values.get(key, {}).items(), key=lambda item: (item[1], item[0]))
        end = len(ordered) + last + 1 if last < 0 else last + 1
        return [name for name, _ in ordered[first : max(0, end)]]

    def _xadd(self, key: str, fields: dict[str, Any]) -> None:
        self._entries += 1
        entry = {_bytes(name): _bytes(value) for name, value in fields.items()}
        self._values.setdefault(key, []).append((self._entries, entry))
        self.written(entry.get(b"body", b""))
        self.wake()

    def xread(self, process: Process, seen: dict[Any, Any], block_ms: int) -> list[Any]:
        """Waits for what is new. Raises LostError."""
        until = self.clock.now + block_ms / 1000
        while True:
            self.reach(process)
            new = [
                (key, [e for e in self._alive(_text(key)) or () if e[0] > int(after)]) for key, after in seen.items()
            ]
            if any(entries for _, entries in new) or self.clock.now >= until:
                return [(key, entries) for key, entries in new if entries]
            self._waiting.append(self.clock.living())
            self.clock.park(until - self.clock.now)

    def _eval(self, script: str, count: int, *args: Any) -> Any:
        keys, values = [_text(key) for key in args[:count]], args[count:]
        return _SCRIPTS[script](self, keys, [_bytes(value) for value in values])

    # ---- the Lua scripts of the code under test ----------------------------------------------------------------------

    def take(self, keys: list[str], values: list[bytes]) -> Any:
        if (held := self._get(keys[0])) is not None:
            return held
        self._set(keys[0], values[0], px=int(values[1]))
        token = max(int(self._get(keys[1]) or 0) + 1, int(values[2]))
        self._set(keys[1], token)
        return token

    def renew(self, keys: list[str], values: list[bytes]) -> int:
        if self._get(keys[0]) != values[0]:
            return 0
        self._set(keys[0], values[0], px=int(values[1]))
        return 1

    def release(self, keys: list[str], values: list[bytes]) -> int:
        return self._delete(keys[0]) if self._get(keys[0]) == values[0] else 0

    def keep(self, keys: list[str], values: list[bytes]) -> None:
        name, run, at, most, run_id = values
        self._hset(keys[0], name, run)
        self._zadd(keys[1], {name: float(at)})
        self._forget(keys[:2], *self._zrange(keys[1], 0, -int(most) - 1))
        self._forget(keys[2:], run_id)

    def _forget(self, keys: list[str], *names: bytes) -> None:
        for key in keys:
            self._hdel(key, *names)

    def claim(self, keys: list[str], values: list[bytes]) -> Any:
        held, bound = self._get(keys[0]), self._get(keys[1])
        start, ttl, machine, machine_id, node = values
        if held is not None and b"-" + machine + b"-" not in held:
            return [b"held", held]
        for given_up in sorted(self._alive(keys[2]) or ()):
            if given_up in {machine_id, b"?"}:
                return [b"given up", given_up]
        if bound is not None and bound.split()[0] != machine_id:
            return [b"bound", bound]
        self._set(keys[1], machine_id + b" " + node)
        if ttl != b"0":
            self._set(keys[0], start, px=int(ttl))
        return None

    def give_up(self, keys: list[str], _: list[bytes]) -> int:
        bound = self._get(keys[0])
        if bound is not None or not self._exists(keys[1]):
            self._sadd(keys[1], bound.split()[0] if bound is not None else b"?")
        return self._delete(keys[0])


_SCRIPTS: dict[str, Callable[[Broker, list[str], list[bytes]], Any]] = {
    store_scripts._TAKE: Broker.take,
    store_scripts._KEEP: Broker.keep,
    store_scripts._RENEW: Broker.renew,
    store_scripts.RELEASE: Broker.release,
    state_scripts._CLAIM: Broker.claim,
    state_scripts._GIVE_UP: Broker.give_up,
}


class Client:
    """A client as redis-py has it, of one process."""

    def __init__(self, broker: Broker, process: Process) -> None:
        self._broker, self._process = broker, process

    def xread(self, seen: dict[Any, Any], block: int) -> list[Any]:
        return self._broker.xread(self._process, seen, block)

    def pipeline(self, *, transaction: bool = True) -> Pipeline:
        return Pipeline(self._broker, self._process)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self._broker.reach(self._process)
            return self._broker.command(name, args, options)

        return call


class Pipeline:
    def __init__(self, broker: Broker, process: Process) -> None:
        self._broker, self._process = broker, process
        self._commands: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: self._commands.append((name, args, options))

    def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        self._broker.reach(self._process)
        commands, self._commands = self._commands, []
        return [self._broker.command(*command) for command in commands]


class Task:
    """A task as Celery gives it to who carries it out."""

    def __init__(self, broker: Broker, queue: str, name: str, tried: int) -> None:
        self._broker, self._queue, self._name = broker, queue, name
        self.request = SimpleNamespace(retries=tried, id="task", traceparent=None)

    def retry(self, *, kwargs: dict[str, Any], countdown: float, **_: Any) -> Retry:
        self._broker.put(self._queue, self._name, kwargs, countdown, self.request.retries + 1)
        return Retry()


def _text(key: Any) -> Any:
    return key.decode() if isinstance(key, bytes) else key


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()

"""Virtual time: actors that take turns by one seed, and what stands for clocks, threads and locks below the real code.

An actor is a greenlet. It gives up its turn in `pause` and `park`, and nowhere else; between two turns nothing else
happens. A step is one turn. What is done to the world from outside (a fault, a delivery) is a plain function at a time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from hashlib import blake2b
from random import Random
from typing import Any, Self

import greenlet

EPOCH_S = datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp()


class Killed(BaseException):
    """`kill -9`: unwinds an actor whose process is dead; nothing that it still tries has an effect."""


class Process:
    """A life of a worker. Frozen, it takes no turn; dead, each of its calls raises Killed."""

    def __init__(self, name: str, machine: Any = None) -> None:
        self.name = name
        self.machine = machine
        self.alive = True
        self.cut_until = 0.0
        self.frozen_until = 0.0
        self.actors: list[Actor] = []
        self.calls = 0
        self.dies_at: int | None = None
        self.power_fails = False


class Actor:
    """One flow of control of a process."""

    def __init__(self, name: str, process: Process, let: greenlet.greenlet) -> None:
        self.name = name
        self.process = process
        self.let = let
        self.turn = 0
        self.is_done = False
        self.joiners: list[Actor] = []
        self.order: dict[str, Any] | None = None


class Clockwork:
    """The one clock, the one source of chance, and whose turn it is."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.now = 0.0
        self.steps = 0
        self.current: Actor | None = None
        self.failure: BaseException | None = None
        self.told: deque[str] = deque(maxlen=4000)
        self._digest = blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Actor | Callable[[], None], int]] = []
        self._count = 0
        self._processes: dict[Process, None] = {}
        self._hub = greenlet.getcurrent()

    def say(self, text: str) -> None:
        """Note an event: what the digest of a run is made of."""
        line = f"{self.now:.6f} {text}"
        self._digest.update(line.encode())
        self.told.append(line)

    def digest(self) -> str:
        return f"{self._digest.hexdigest()}-{self.steps}"

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        """Have something happen to the world."""
        self._push(self.now + seconds, event, 0)

    def spawn(self, name: str, act: Callable[[], object], process: Process, after_s: float = 0.0) -> Actor:
        def live() -> None:
            try:
                act()
            except Killed:
                pass
            finally:
                actor.is_done = True
                for joiner in actor.joiners:
                    self.wake(joiner)

        actor = Actor(name, process, greenlet.greenlet(live, self._hub))
        self._processes[process] = None
        process.actors = [other for other in process.actors if not other.is_done]
        process.actors.append(actor)
        self._push(self.now + after_s, actor, actor.turn)
        return actor

    def pause(self, seconds: float = 0.0) -> None:
        """Let others have their turns, for some time."""
        actor = self.living()
        self._push(self.now + seconds + self.chance.random() * 1e-4, actor, actor.turn)
        self._hub.switch()
        self.living()

    def park(self, seconds: float | None) -> None:
        """As `pause`, or until somebody wakes this actor."""
        actor = self.living()
        if seconds is not None:
            self._push(self.now + max(0.0, seconds), actor, actor.turn)
        self._hub.switch()
        self.living()

    def wake(self, actor: Actor) -> None:
        if not actor.is_done and actor.process.alive:
            actor.turn += 1
            self._push(self.now, actor, actor.turn)

    def living(self) -> Actor:
        """Whose turn it is. Raises Killed."""
        assert self.current is not None, "only actors wait"
        if not self.current.process.alive:
            raise Killed
        return self.current

    def kill(self, process: Process) -> None:
        """End a process. The actor whose turn it is notices at its next call."""
        if process.alive:
            process.alive = False
            self.at(0.0, lambda: self._bury(process))

    def run(self, *, steps: int | None = None, until_s: float | None = None) -> None:
        """Go on for so many steps, or until a time."""
        last = None if steps is None else self.steps + steps
        while self._heap and (last is None or self.steps < last):
            if until_s is not None and self._heap[0][0] > until_s:
                self.now = until_s
                return
            at, _, what, turn = heapq.heappop(self._heap)
            if not isinstance(what, Actor):
                self.now = max(self.now, at)
                what()
            elif not what.is_done and what.turn == turn and what.process.alive:
                if what.process.frozen_until > at:
                    self._push(what.process.frozen_until, what, turn)
                    continue
                self.now = max(self.now, at)
                self._take_turn(what)
            if self.failure is not None:
                raise self.failure

    def end(self) -> None:
        """Nobody lives on: what a greenlet still holds is let go of now, and not when memory is collected."""
        for process in list(self._processes):
            process.alive = False
            self._bury(process)

    def _take_turn(self, actor: Actor) -> None:
        self.steps += 1
        actor.turn += 1
        self.current = actor
        try:
            actor.let.switch()
        finally:
            self.current = None

    def _bury(self, process: Process) -> None:
        for actor in process.actors:
            if not actor.is_done:
                self.current = actor
                with suppress(Killed):  # of one that had not begun
                    actor.let.throw(Killed)
                actor.is_done = True
                self.current = None
        self._processes.pop(process, None)
        if process.machine is not None:
            process.machine.disk.close_all(process)

    def _push(self, at: float, what: Actor | Callable[[], None], turn: int) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, what, turn))

    # ---- what stands for modules `time` and `datetime` ----------------------------------------------------------

    def _machine(self) -> Any:
        return self.current.process.machine if self.current else None

    def time(self) -> float:
        """The wall clock of whoever asks; it may jump."""
        machine = self._machine()
        return EPOCH_S + self.now + (machine.clock_off_s if machine else 0.0)

    def monotonic(self) -> float:
        machine = self._machine()
        return self.now - (machine.booted_at if machine else 0.0) + 1000.0

    def clock_gettime(self, clock: int) -> float:
        del clock  # all of them begin with the machine
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        self.pause(seconds)

    def utc(self, zone: tzinfo | None = UTC) -> datetime:
        return datetime.fromtimestamp(self.time(), zone)


class Threads:
    """What stands for the module `threading`, and for pools."""

    def __init__(self, clock: Clockwork) -> None:
        class Lock(_Lock):
            _clock = clock

        class Event(_Event):
            _clock = clock

        class Thread(_Thread):
            _clock = clock

        class Pool(_Pool):
            _clock = clock

        self.Lock, self.Event, self.Thread, self.Pool = Lock, Event, Thread, Pool


class _Lock:
    _clock: Clockwork

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: list[Actor] = []

    def acquire(self, *, timeout: float | None = None) -> bool:
        until = None if timeout is None else self._clock.now + timeout
        while self._is_held:
            if until is not None and self._clock.now >= until:
                return False
            actor = self._clock.living()
            self._waiting.append(actor)
            self._clock.park(None if until is None else until - self._clock.now)
            if actor in self._waiting:
                self._waiting.remove(actor)
        self._is_held = True
        return True

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._is_held = False
        waiting, self._waiting = self._waiting, []
        for actor in waiting:
            self._clock.wake(actor)


class _Event:
    _clock: Clockwork

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Actor] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        waiting, self._waiting = self._waiting, []
        for actor in waiting:
            self._clock.wake(actor)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._is_set:
            self._waiting.append(self._clock.living())
            self._clock.park(timeout)
        return self._is_set


class _Thread:
    _clock: Clockwork

    def __init__(self, *, target: Callable[[], object], name: str = "", daemon: bool = False) -> None:
        self._target, self._name = target, name
        self._actor: Actor | None = None

    def start(self) -> None:
        self._actor = self._clock.spawn(self._name, self._target, self._clock.living().process)

    def is_alive(self) -> bool:
        return self._actor is not None and not self._actor.is_done

    def join(self) -> None:
        while self.is_alive() and self._actor is not None:
            self._actor.joiners.append(self._clock.living())
            self._clock.park(None)


class _Pool:
    """Each task is an actor; nobody asks for what becomes of it."""

    _clock: Clockwork

    def __init__(self, most: int, thread_name_prefix: str = "") -> None:
        self._name = thread_name_prefix

    def submit(self, act: Callable[..., object], *args: object, **options: object) -> None:
        self._clock.spawn(self._name, lambda: act(*args, **options), self._clock.living().process)

    def shutdown(self, **_: object) -> None:
        pass


class InlinePool:
    """Does at once what it is given: for those who wait for it anyway."""

    def __init__(self, most: int, thread_name_prefix: str = "") -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, act: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(act(*args, **options))
        except Exception as error:  # noqa: BLE001 - as a pool does
            future.set_exception(error)
        return future

    def map(self, act: Callable[[Any], Any], each: Iterable[Any]) -> list[Any]:
        return [act(one) for one in each]

    def shutdown(self, **_: object) -> None:
        pass

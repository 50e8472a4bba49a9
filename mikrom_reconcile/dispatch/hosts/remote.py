"""The hypervisor hosts of a fleet, asked over Celery; their answers come over streams.

Celery's own results are never waited for: a stream tells 5,000 outcomes in a quarter of the time. A broker that is
lost in the middle makes hosts unreachable and unanswered actions temporary failures; the next run observes anew.
It must never decide what an outcome means.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

import msgspec
from kombu.exceptions import OperationalError
from redis import RedisError

from mikrom_reconcile import __version__
from mikrom_reconcile.control.stores.redis import translate_broker_errors
from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import Console, HostReport, HostView, ObserveQuery, Stock
from mikrom_reconcile.core.model.run import ActionOutcome, Order
from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.transport import ending_work
from mikrom_reconcile.dispatch.transport.heartbeats import give_up, known, living, starts
from mikrom_reconcile.dispatch.transport.order_envelope import given_up, load_signer, priority_of, redacted_args
from mikrom_reconcile.dispatch.transport.redis_keys import FIRST, Keys
from mikrom_reconcile.dispatch.transport.rpc import Answer, Call, unpack
from mikrom_reconcile.dispatch.transport.shared_state import remember_counts
from mikrom_reconcile.times_and_sizes import BROKER, OBSERVING

if TYPE_CHECKING:
    from redis import Redis

    from mikrom_reconcile.dispatch.transport.signing import Signer

T = TypeVar("T")

_log = logging.getLogger(__name__)

_LOST = (RedisError, OperationalError)
_NO_WORKER = "no worker answers for this host; is `mikrom worker` running there?"


class CeleryHosts:
    """`Hosts` over host queues. Safe to use from many threads at once."""

    def __init__(self, app: FleetApp, redis: Redis) -> None:
        self._app = app
        self._redis = redis
        self._keys = app.keys

    @cached_property
    def _signer(self) -> Signer | None:
        return load_signer(self._app.settings)

    @translate_broker_errors()
    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        """The hosts whose workers live, or lived within the last day, if `unreachable` ones matter, sorted."""
        return known(self._redis, self._keys) if unreachable else living(self._redis, self._keys, "host")

    @translate_broker_errors()
    def give_up(self, hosts: Iterable[str]) -> None:
        """Free the names of these hosts; machines that come back stop what they run. Raises SetupError."""
        for host in hosts:
            give_up(self._redis, self._keys, host)

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        """One view per queried host, as they come; a host without a living worker is unreachable at once."""

        def ask(call: _HostCall, host: str) -> None:
            query = msgspec.json.encode(queries[host]).decode()
            self._send(host, "mikrom.observe_host", {"call": call.name, "query": query}, note=host)

        reports = []
        for host, answer in self._answers("observe", queries, ask, deadline_s):
            view = _view(host, answer)
            if view.report is not None:
                reports.append(view.report)
            yield view
        if project := next((query.project for query in queries.values()), None):
            remember_counts(self._redis, self._keys, project, reports)

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:
        """One outcome per order, as they come, at most `forks` at once per host."""
        orders_left = OrderQueue(orders, forks)
        try:
            yield from self._execute(orders_left, time.monotonic() + deadline_s)
        except _LOST as error:
            yield from orders_left.give_up(f"the broker was lost: {error}")

    def _execute(self, orders: OrderQueue, until: float) -> Iterator[ActionOutcome]:
        with _HostCall(self._redis, self._keys, "execute") as call:
            while True:
                for order in orders.next_orders():
                    if call.reach([order.action.host]):
                        self._send_order(call, order)
                    else:
                        yield from orders.lose(order.action.host, _NO_WORKER)
                if orders.is_done():
                    return
                for host, answer in call.round(until):
                    if answer is None:
                        yield from orders.lose(host, "the host's worker died, was restarted or lost its broker")
                    elif (outcome := orders.finish(_outcome(answer))) is not None:
                        yield outcome
                if time.monotonic() >= until:
                    yield from orders.give_up("the deadline passed first")

    @translate_broker_errors()
    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        """The end of a VM's serial console. Raises MikromError when the host cannot be reached."""

        def ask(call: _HostCall, host: str) -> None:
            asked = {"call": call.name, "vm": vm, "max_bytes": max_bytes, "after": after}
            self._send(host, "mikrom.console", asked, note=vm)

        try:
            ((_, answer),) = self._ask("console", {host}, ask, time.monotonic() + BROKER.console_answer_s)
            return _value(answer, "console", Console)
        except MikromError as error:
            raise MikromError(f"{host}: {error}") from error

    def images(self, files: Mapping[str, tuple[PinnedFile, ...]], *, deadline_s: float) -> Iterator[Stock]:
        """What each of these hosts has cached once it has fetched its files, as they come."""

        def ask(call: _HostCall, host: str) -> None:
            wanted = msgspec.json.encode(files[host]).decode()
            sent = {"call": call.name, "files": wanted, "deadline_s": deadline_s * OBSERVING.host_share_of_deadline}
            sent["signature"] = self._signature(call, host, wanted)
            self._send(host, "mikrom.images", sent, note=host)

        for host, answer in self._answers("images", files, ask, deadline_s):
            try:
                stock = _value(answer, "stock", Stock)
                _speaks_for_itself(host, [stock.host])
            except MikromError as error:
                stock = Stock(host=host, error=str(error))
            yield stock

    def _answers(
        self, purpose: str, hosts: Iterable[str], ask: Callable[[_HostCall, str], None], deadline_s: float
    ) -> Iterator[tuple[str, Answer | str]]:
        """Each host's answer to what `ask` sends it, or why there is none, as they come."""
        missing = {*hosts}
        try:
            yield from self._ask(purpose, missing, ask, time.monotonic() + deadline_s)
        except _LOST as error:
            for host in sorted(missing):
                yield host, f"the broker was lost: {error}"

    def _ask(
        self, purpose: str, missing: set[str], ask: Callable[[_HostCall, str], None], until: float
    ) -> Iterator[tuple[str, Answer | str]]:
        """As `_answers`; hosts that were told of are no longer `missing`. Raises RedisError and OperationalError."""
        with _HostCall(self._redis, self._keys, purpose) as call:
            for host in sorted(missing - call.reach(missing)):
                missing.remove(host)
                yield host, _NO_WORKER
            for host in sorted(missing):
                ask(call, host)
            while missing:
                for host, answer in call.round(until):
                    if host in missing:
                        missing.remove(host)
                        yield host, answer or _NO_WORKER
                if time.monotonic() >= until:
                    for host in sorted(missing):
                        missing.remove(host)
                        yield host, "no answer by the deadline"

    def _send_order(self, call: _HostCall, order: Order) -> None:
        action = order.action
        sent = {"call": call.name, "order": msgspec.json.encode(order).decode(), "release": __version__}
        sent["signature"] = self._signature(call, action.host, sent["order"])
        self._send(
            action.host,
            f"mikrom.{action.verb}_vm",
            sent,
            note=redacted_args(order),
            priority=priority_of(order),
            # a backstop only: the hard limit ends the task's greenlet without a word to anybody
            time_limit=action.deadline_s + 30,
        )

    def _signature(self, call: _HostCall, host: str, text: str) -> str:
        """That of control for this host's worker; "" without a key."""
        if self._signer is None:
            return ""
        start_id = call.start_of(host)
        return self._signer.sign(text, queue=self._keys.host_queue(host), start_id=start_id, call=call.name)

    def _send(
        self, host: str, task: str, arguments: Mapping[str, object], *, note: str, priority: int = FIRST,
        time_limit: float | None = None,
    ) -> None:  # fmt: skip
        self._app.send_task(
            task,
            kwargs=dict(arguments),
            queue=self._keys.host_queue(host),
            priority=priority,
            time_limit=time_limit,
            ignore_result=True,
            kwargsrepr=note,
        )


class OrderQueue:
    """The orders of one call: which wait, which are under way, at most `forks` of them per host."""

    def __init__(self, orders: Iterable[Order], forks: int) -> None:
        self._forks = forks
        self._waiting: dict[str, deque[Order]] = {}
        self._under_way: dict[str, dict[str, Order]] = {}
        for order in orders:  # all at once: a host must not wait because those before it in the plan are busy
            self._waiting.setdefault(order.action.host, deque()).append(order)

    def next_orders(self) -> Iterator[Order]:
        """Orders that may be sent now; each counts as under way."""
        for host, waiting in self._waiting.items():
            while waiting and len(self._under_way.get(host, ())) < self._forks:
                order = waiting.popleft()
                self._under_way.setdefault(host, {})[order.action.id] = order
                yield order

    def is_done(self) -> bool:
        """Whether nothing is under way; after `next_orders` that means that nothing waits either."""
        return not any(self._under_way.values())

    def finish(self, outcome: ActionOutcome | None) -> ActionOutcome | None:
        """`outcome`, or None when it was told before or nobody asked for it."""
        if outcome is None:
            return None
        asked = self._under_way.get(outcome.host, {}).pop(outcome.action_id, None)
        return outcome if asked is not None else None

    def lose(self, host: str, why: str) -> Iterator[ActionOutcome]:
        """A temporary failure for everything that was sent to `host` and not answered."""
        for order in self._under_way.pop(host, {}).values():
            yield given_up(order, "failed_temporary", why)

    def give_up(self, why: str) -> Iterator[ActionOutcome]:
        """The end of the call: what was sent failed, what was not is skipped."""
        for host in sorted(self._under_way):
            yield from self.lose(host, why)
        for order in chain.from_iterable(self._waiting.values()):
            yield given_up(order, "skipped", why)
        self._waiting.clear()


class _HostCall(Call):
    """A call to hosts, which also sees whether the workers that were asked still live."""

    def __init__(self, redis: Redis, keys: Keys, purpose: str) -> None:
        super().__init__(redis, keys, f"{purpose}-{secrets.token_hex(8)}")
        self._starts: dict[str, bytes] = {}
        self._check_at = time.monotonic() + BROKER.worker_check_s

    def reach(self, hosts: Iterable[str]) -> set[str]:
        """Those of `hosts` that have a worker; from then on they are watched, and their answers are read."""
        wanted = {*hosts}
        self._starts |= self._living(wanted - self._starts.keys())
        for host in wanted & self._starts.keys():
            self.listen(f"host:{host}")
        return wanted & self._starts.keys()

    def start_of(self, host: str) -> str:
        """The start id of a worker that is watched."""
        return self._starts[host].decode()

    def round(self, until: float) -> Iterator[tuple[str, Answer | None]]:
        """What hosts answer within a second, and None for one whose worker is no longer the one that was asked.

        Raises MikromError when this process is to end.
        """
        for answer in self.read(min(1.0, max(0.0, until - time.monotonic()))):
            yield _host(answer.owner), answer
        ending_work.refuse_when_stopping()
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + BROKER.worker_check_s
            before, self._starts = self._starts, self._living(self._starts)
            yield from ((host, None) for host, start in before.items() if self._starts.get(host) != start)

    def _living(self, hosts: Iterable[str]) -> dict[str, bytes]:
        found = starts(self._redis, self._keys, [f"host:{host}" for host in hosts])
        return {_host(owner): start for owner, start in found.items()}


def _host(owner: str) -> str:
    return owner.removeprefix("host:")


def _speaks_for_itself(host: str, named: Iterable[str]) -> None:
    """Raises MikromError for an answer about another host: one that was broken into may tell lies about itself only."""
    if others := {*named} - {host}:
        raise MikromError(
            f"host {host} spoke for {', '.join(sorted(others))}, and is not believed: see to it, it may be broken into"
        )


def _value(answer: Answer | str, kind: str, of: type[T]) -> T:
    """What an answer of this kind says. Raises MikromError where it is another, or there is none."""
    if isinstance(answer, str):
        raise MikromError(answer)
    if answer.kind != kind:
        raise MikromError(unpack(answer.body, str))
    return unpack(answer.body, of)


def _outcome(answer: Answer) -> ActionOutcome | None:
    try:
        outcome = unpack(answer.body, ActionOutcome)
        _speaks_for_itself(_host(answer.owner), [outcome.host])
    except MikromError as error:
        _log.warning("%s: %s", answer.owner, error)
        return None
    return outcome


def _view(host: str, answer: Answer | str) -> HostView:
    try:
        report = _value(answer, "report", HostReport)
        _speaks_for_itself(host, [report.host, *(row.host for row in report.vms)])
    except MikromError as error:
        return HostView(host=host, error=str(error))
    return HostView(host=host, report=report)

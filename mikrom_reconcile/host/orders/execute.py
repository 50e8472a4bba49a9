"""Measure, act, verify: one order from the message to its outcome.

Under the VM's action lock an order is judged (`fence.py`), carried out step by step (`deeds.py`), and answered with
what the host then observes. Errors become outcomes here and nowhere below. What is no error, such as the end of a
greenlet or a time limit, passes through once no half-started VMM is left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec

from mikrom_reconcile.core.model.errors import (
    ActionError,
    BusyError,
    MikromError,
    PastDeadlineError,
    PermanentError,
    TemporaryError,
)
from mikrom_reconcile.core.model.observed import FailedResult, ObservedVM
from mikrom_reconcile.core.model.run import ActionOutcome, Order, Result
from mikrom_reconcile.host.observe import Observer, capacity, unreadable_row
from mikrom_reconcile.host.orders.preconditions import Answer, rejection_of
from mikrom_reconcile.host.orders.reservations import Memory
from mikrom_reconcile.host.orders.steps import Deed, Step, log_fields
from mikrom_reconcile.host.ports import Clock, Driver, VMRecord
from mikrom_reconcile.host.records import Records, UnreadableRecord
from mikrom_reconcile.system.files import FULL

TEMPORARY = (TemporaryError, BusyError, PastDeadlineError)
"""Errors after which the same order may succeed. Every other one stays until something is changed."""

log = logging.getLogger(__name__)


def no_seam(vm: str, step: str) -> None:
    """The `on_step` of a host that is no test: nothing."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How an order ended, before it is dated and sent."""

    result: Result
    error: str | None = None
    observed: ObservedVM | None = None


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order that an error ended."""

    result: FailedResult
    error: str


class Executor:
    """Carries out orders on one host. Safe to call from many threads, greenlets and processes at once.

    `on_step(vm, step)` is called before each step, and with "done" after the last: tests inject crashes there.
    """

    def __init__(
        self,
        host: str,
        *,
        driver: Driver,
        records: Records,
        clock: Clock,
        on_step: Callable[[str, str], None],
    ) -> None:
        self._host = host
        self._driver = driver
        self._records = records
        self._clock = clock
        self._on_step = on_step
        self._memory = Memory(
            mem_size_mib=capacity().mem_size_mib, need_mib=driver.memory_mib, records=records, clock=clock
        )
        self._observer = Observer(host, driver=driver, records=records)
        self._sweeping = threading.Lock()
        self._swept = False

    def execute(self, order: Order) -> ActionOutcome:
        """Carry out `order`, or say why not. No Exception leaves it; a BaseException does, with all cleaned up."""
        self._sweep_once()
        started_at, began_s = self._clock.now(), self._clock.monotonic()
        try:
            ending = self._ending(order)
        except Exception as error:  # noqa: BLE001 - whatever it is, control has to hear of it
            failure = _failure(order, error)
            ending = Ending(result=failure.result, error=failure.error)
        duration_s = self._clock.monotonic() - began_s
        level = logging.WARNING if ending.error else logging.INFO
        about = ending.error or ending.result
        log.log(
            level,
            "%s %s: %s",
            order.action.verb,
            order.action.vm,
            about,
            extra=log_fields(order, duration_s=duration_s),
        )
        return ActionOutcome(
            action_id=order.action.id,
            vm=order.action.vm,
            host=self._host,
            verb=order.action.verb,
            result=ending.result,
            started_at=started_at,
            finished_at=self._clock.now(),
            observed=ending.observed,
            error=ending.error,
        )

    def _sweep_once(self) -> None:
        """Before the first order of this process, clean up after those that were killed."""
        with self._sweeping:
            if not self._swept:
                self._swept = True
                with suppress(MikromError):  # a folder that cannot be listed is told by the orders themselves
                    self._records.sweep()

    def _ending(self, order: Order) -> Ending:
        vm = order.action.vm
        if order.action.host != self._host:
            raise PermanentError(f"this is {self._host}, not {order.action.host}", vm=vm, step="reading the order")
        with self._records.lock(vm):
            found = self._records.read(vm)
            answer = self._answer(order, found)
            if answer is not None or isinstance(found, UnreadableRecord):
                assert answer is not None, "the fence never lets an unreadable record pass"  # noqa: S101
                return Ending(result=answer.result, error=answer.error, observed=self._seen(vm))
            deed = Deed(
                order, found, driver=self._driver, records=self._records, clock=self._clock, memory=self._memory
            )
            try:
                answer = self._carry_out(deed)
            finally:
                self._memory.settle(vm)
            seen = deed.seen if answer.error is None and deed.seen else self._seen(vm)
            return Ending(result=answer.result, error=answer.error, observed=seen)

    def _answer(self, order: Order, found: VMRecord | UnreadableRecord | None) -> Answer | None:
        project, vm = order.action.project, order.action.vm
        highest = self._records.highest_token(project)
        if order.token > highest:
            try:
                self._records.advance_token(project, order.token)
            except OSError as error:
                message = f"cannot keep token {order.token} of {project}: {error.strerror}; nothing was changed"
                raise TemporaryError(message, vm=vm, step="fencing off older runs") from error
        if found is None:
            with suppress(OSError):  # whoever writes next will say it
                self._records.clear(vm)
        tombstone = self._records.tombstone(vm) if found is None else None
        return rejection_of(order, found, tombstone=tombstone, highest_token=highest)

    def _carry_out(self, deed: Deed) -> Answer:
        try:
            if deed.already_done():
                deed.forget_failures()
                return Answer(result="already_done")
            deed.check()
            for step in deed.steps():
                self._take(step, deed)
            self._on_step(deed.order.action.vm, "done")
        except Exception as error:  # noqa: BLE001 - every failure is cleaned up, kept and told
            failure = _failure(deed.order, error)
            began_s = self._clock.monotonic()
            if cleaned := deed.clean_up():
                self._log_step(deed, "cleaning up", began_s, cleaned)
            told = failure.error + (f"; {cleaned}" if cleaned else "")
            return Answer(result=failure.result, error=told + _noted(deed, told, failure))
        except BaseException:
            with suppress(Exception):
                deed.clean_up()
            raise
        return Answer(result="done")

    def _take(self, step: Step, deed: Deed) -> None:
        name, act = step
        self._on_step(deed.order.action.vm, name)
        deed.remaining_s(name)
        began_s = self._clock.monotonic()
        try:
            act(deed)
        except Exception as error:
            self._log_step(deed, name, began_s, f"failed: {error}")
            raise
        self._log_step(deed, name, began_s)

    def _log_step(self, deed: Deed, step: str, began_s: float, trouble: str = "") -> None:
        level = logging.WARNING if trouble else logging.INFO
        told = f"{step}: {trouble}" if trouble else step
        fields = log_fields(deed.order, step, self._clock.monotonic() - began_s)
        log.log(level, "%s: %s", deed.order.action.vm, told, extra=fields)

    def _seen(self, vm: str) -> ObservedVM | None:
        found = self._records.read(vm)
        if isinstance(found, UnreadableRecord):
            return unreadable_row(found, self._host, self._clock.now())
        with suppress(ActionError):  # what happened to the order is worth more than a look that failed
            return None if found is None else self._observer.row(found)
        return None


def _failure(order: Order, error: Exception) -> Failure:
    if isinstance(error, TEMPORARY) or (isinstance(error, OSError) and error.errno in FULL):
        return Failure(result="failed_temporary", error=str(error))
    if isinstance(error, MikromError):
        return Failure(result="failed_permanent", error=str(error))
    log.error("%s %s broke", order.action.verb, order.action.vm, exc_info=error, extra=log_fields(order))
    message = f"{order.action.vm}: {type(error).__name__}: {error} (a mistake in mikrom: its log on the host has more)"
    return Failure(result="failed_permanent", error=message)


def _noted(deed: Deed, error: str, failure: Failure) -> str:
    try:
        deed.note_failure(error, failure.result)
    except TemporaryError as why:
        return f"; and it could not be noted: {why}"
    return ""

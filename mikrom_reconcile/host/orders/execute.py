"""Carries out orders: one order from the message to its outcome. Under the VM's action lock an order passes the
preconditions, is carried out step by step, and is answered with what the host then observes. Errors become outcomes
here and nowhere below; what is no error, such as the end of a greenlet, passes through once no half-started VMM is
left.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress

from msgspec.structs import asdict, replace

from mikrom_reconcile.core.model.errors import ActionError, MikromError, PastDeadlineError, TemporaryError
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import ActionOutcome, Order
from mikrom_reconcile.host.observe import capacity, row_of, unreadable_row
from mikrom_reconcile.host.orders.preconditions import Ending, Reservations, loses_disks, rejection_of
from mikrom_reconcile.host.orders.steps import ActionRun, log_fields
from mikrom_reconcile.host.ports import Driver, VMRecord
from mikrom_reconcile.host.records import Records, UnreadableRecord
from mikrom_reconcile.system.approvals import NOBODY
from mikrom_reconcile.system.files import FULL
from mikrom_reconcile.system.time_limits import Clock

log = logging.getLogger(__name__)


class Executor:
    """Carries out orders on one host. Safe to call from many threads, greenlets and processes at once. `on_step(vm,
    step)` is called before each step, and with "done" after the last: tests inject crashes there.
    """

    def __init__(
        self, host: str, *, driver: Driver, records: Records, clock: Clock, on_step: Callable[[str, str], None]
    ) -> None:
        self._host, self._driver, self._records, self._clock = host, driver, records, clock
        self._on_step, self.approvers = on_step, NOBODY
        self._reservations = Reservations(
            mem_size_mib=capacity().mem_size_mib, need_mib=driver.memory_mib, records=records, clock=clock
        )
        self._sweeping = threading.Lock()
        self._swept = False

    def execute(self, order: Order) -> ActionOutcome:
        """Carry out `order`, or say why not. No Exception leaves it; a BaseException does, with all cleaned up."""
        self._sweep_once()
        started_at, began_s = self._clock.now(), self._clock.monotonic()
        try:
            ending = self._run(order)
        except Exception as error:  # noqa: BLE001 - whatever it is, control has to hear of it
            ending = _failure(order, error)
        level = logging.WARNING if ending.error else logging.INFO
        fields = log_fields(order, duration_s=self._clock.monotonic() - began_s)
        said = ending.error or ending.note or ending.result
        log.log(level, "%s %s: %s", order.action.verb, order.action.vm, said, extra=fields)
        return ActionOutcome(
            action_id=order.action.id,
            vm=order.action.vm,
            host=self._host,
            verb=order.action.verb,
            started_at=started_at,
            finished_at=self._clock.now(),
            **asdict(ending),
        )

    def _sweep_once(self) -> None:
        """Before the first order of this process, clean up after those that were killed."""
        with self._sweeping:
            if not self._swept:
                self._swept = True
                with suppress(MikromError):  # a folder that cannot be listed the orders themselves report
                    self._records.sweep()

    def _run(self, order: Order) -> Ending:
        vm, project = order.action.vm, order.action.project
        if order.action.host != self._host:
            error = f"{vm}: this is {self._host}, not {order.action.host} (while reading the order)"
            return Ending(result="failed_permanent", error=error)
        was = order.action.moved_from or vm
        with self._records.lock(vm), self._records.lock(was) if was != vm else nullcontext():
            found, tombstone, highest = self._records.read(vm), None, self._records.highest_token(project)
            found = self._records.read(was) if found is None and was != vm else found
            if order.token > highest:
                try:
                    self._records.advance_token(project, order.token)
                except OSError as error:
                    message = f"cannot keep token {order.token} of {project}: {error.strerror}; nothing was changed"
                    raise TemporaryError(message, vm=vm, step="fencing off older runs") from error
            if found is None:
                tombstone = self._records.tombstone(vm)
            ending = rejection_of(order, found, tombstone=tombstone, highest_token=highest)
            if ending is None and isinstance(found, VMRecord) and loses_disks(order.action, found):
                why = self.approvers.objection(order)
                ending = Ending(result="failed_permanent", error=f"{vm} would lose its data: {why}") if why else None
            if ending is not None:
                return replace(ending, observed=self._observe(vm))
            assert not isinstance(found, UnreadableRecord), "an unreadable record is rejected"  # noqa: S101
            return self._carry_out(order, found, tombstone)

    def _carry_out(self, order: Order, found: VMRecord | None, tombstone: VMRecord | None) -> Ending:
        run = ActionRun(
            order=order,
            found=found,
            tombstone=tombstone,
            driver=self._driver,
            records=self._records,
            clock=self._clock,
            reservations=self._reservations,
        )
        try:
            if why := run.overtaken():
                return Ending(result="stale", observed=run.row_left(), error=why)
            result = run.carry_out(self._on_step)
            return Ending(result=result, observed=run.seen or run.row_left(), note=run.note)
        except Exception as error:  # noqa: BLE001 - every failure is cleaned up, recorded and reported
            return self._failed(run, error)
        except BaseException:
            with suppress(Exception):
                run.clean_up()
            raise
        finally:
            self._reservations.commit(order.action.moved_from, None)
            self._reservations.commit(order.action.vm, run.record)

    def _failed(self, run: ActionRun, error: Exception) -> Ending:
        ending = _failure(run.order, error)
        began_s = self._clock.monotonic()
        if cleaned := run.clean_up():
            fields = log_fields(run.order, "cleaning up", self._clock.monotonic() - began_s)
            log.warning("%s: cleaning up: %s", run.order.action.vm, cleaned, extra=fields)
            ending = replace(ending, error=f"{ending.error}; {cleaned}")
        try:
            run.note_failure(str(ending.error), is_temporary=ending.result == "failed_temporary")
        except TemporaryError as why:
            ending = replace(ending, error=f"{ending.error}; and it could not be noted: {why}")
        return replace(ending, observed=run.row_left())

    def _observe(self, vm: str) -> ObservedVM | None:
        found = self._records.read(vm)
        if isinstance(found, UnreadableRecord):
            return unreadable_row(found, self._host, self._clock.now())
        with suppress(ActionError):  # what happened to the order is worth more than a look that failed
            return row_of(found, self._driver.observe(found), self._host, self._driver.links()) if found else None
        return None


def _failure(order: Order, error: Exception) -> Ending:
    if isinstance(error, TemporaryError | PastDeadlineError) or (isinstance(error, OSError) and error.errno in FULL):
        return Ending(result="failed_temporary", error=str(error))
    if isinstance(error, MikromError):
        return Ending(result="failed_permanent", error=str(error))
    log.error("%s %s broke", order.action.verb, order.action.vm, exc_info=error, extra=log_fields(order))
    message = f"{order.action.vm}: {type(error).__name__}: {error} (a mistake in mikrom: its log on the host has more)"
    return Ending(result="failed_permanent", error=message)

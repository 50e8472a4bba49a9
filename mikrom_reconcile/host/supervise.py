"""Brings VMMs back that die without anybody's order, at once and without a controller.

One thread (or greenlet) awaits the ends of all VMMs; what it finds is looked at by a small pool. A look trusts nothing
that was known before: it reads the record and the VMM's end again, under the VM's action lock, so that it never acts
against an order, nor beside one. Whoever holds that lock acts, and is looked at again afterwards.

It only ever starts what the record says should be up. What an order failed to bring up is left to the next run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.devices import seconds_of
from mikrom_reconcile.core.model.errors import ActionError, SetupError
from mikrom_reconcile.core.model.lifecycle import ENDED, NOT_RESTARTED, WANTS_VMM, phase_of
from mikrom_reconcile.core.model.observed import Phase
from mikrom_reconcile.core.model.run import ActionOutcome, Result
from mikrom_reconcile.host.ports import Driver, VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.limits import ORDERS, SUPERVISION
from mikrom_reconcile.system.clock import Clock
from mikrom_reconcile.system.processes import Ends, allow_descriptors

DIED: frozenset[Phase] = frozenset(ENDED.values()) - {"defined"}
"""Phases of a VM whose VMM ended without an order; which of them are brought back is the restart policy's."""

BEGUN: frozenset[Phase] = frozenset({"defined", "starting", "failed"})
"""Phases in which a restart that was begun here (it is in the record) is to be tried again."""

Tell = Callable[[str, ActionOutcome], None]

log = logging.getLogger(__name__)


def nobody(project: str, outcome: ActionOutcome) -> None:
    """The `on_outcome` of a host whose history nobody keeps."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a look came to: a descriptor to await, or the seconds until the next look (0: now), or neither.

    A look after such a wait, and only that, may restart at once what has been restarted before.
    """

    pidfd: int | None = None
    again_s: float | None = None


class Supervisor:
    """Keeps the VMs of one host up. `start` it once; `stop` may be called by a signal handler.

    `on_rescan` is what else the host has to do from time to time, `on_outcome` hears of what was done, and its project.
    """

    def __init__(
        self, host: str, *, driver: Driver, records: Records, clock: Clock, on_rescan: Callable[[], None],
        rescan_s: float = SUPERVISION.rescan_s, on_outcome: Tell = nobody,
    ) -> None:  # fmt: skip
        self._host = host
        self._driver = driver
        self._records = records
        self._clock = clock
        self._rescan_s = rescan_s
        self._on_rescan = on_rescan
        self._on_outcome = on_outcome
        self._stopped = False
        self._ends = Ends()
        self._told: deque[str] = deque()
        self._found: deque[tuple[str, Found]] = deque()
        self._looking: dict[str, bool] = {}
        self._due: dict[str, float] = {}
        self._rescan_at = 0.0
        self._pool = ThreadPoolExecutor(SUPERVISION.starts_at_once, thread_name_prefix="supervise")

    def start(self) -> None:
        """Begin with everything that has a record here."""
        allow_descriptors()
        threading.Thread(target=self._supervise, name="supervise", daemon=True).start()

    def stop(self) -> None:
        """Begin nothing more. VMMs live on."""
        self._stopped = True
        self._ends.wake()

    def tell(self, vm: str) -> None:
        """Look at `vm` now: an order has just been carried out on it."""
        self._told.append(vm)
        self._ends.wake()

    # ---- the one that waits: all that is known here is its own -----------------------------------------------------

    def _supervise(self) -> None:
        while not self._stopped:
            try:
                self._wait_and_look()
            except SetupError as error:  # the folder was moved, or cannot be read: told until somebody mends it
                log.error("%s", error, extra={"host": self._host, "step": "supervising"})  # noqa: TRY400 - no mistake
                time.sleep(min(self._rescan_s, SUPERVISION.rescan_s))
            except Exception:  # whatever it is, the VMs need somebody to wait for them
                pause_s, fields = SUPERVISION.retry_s, {"host": self._host}
                log.exception("supervision of %s goes on in %g s", self._host, pause_s, extra=fields)
                time.sleep(pause_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ends.close()

    def _wait_and_look(self) -> None:
        now = time.monotonic()
        if now >= self._rescan_at:
            self._rescan_at = now + self._rescan_s
            self._rescan()
        for vm in self._ends.wait(min((self._rescan_at, *self._due.values())) - now):
            self._look_at(vm)
        self._take_in()

    def _take_in(self) -> None:
        """What others have left for this thread, and whose time has come."""
        while self._found:
            vm, found = self._found.popleft()
            again = self._looking.pop(vm) or found.again_s == 0
            self._ends.remove(vm)
            if found.pidfd is not None:
                self._ends.add(vm, found.pidfd)
            if found.again_s:
                self._due[vm] = time.monotonic() + found.again_s
            if again:
                self._look_at(vm)
        while self._told:
            self._look_at(self._told.popleft())
        now = time.monotonic()
        for vm in [vm for vm, due_s in self._due.items() if due_s <= now]:
            self._look_at(vm, waited=True)

    def _rescan(self) -> None:
        self._pool.submit(self._trim)
        self._pool.submit(self._on_rescan)
        for vm in self._records.names():
            if vm not in self._ends and vm not in self._due and vm not in self._looking:
                self._look_at(vm)

    def _trim(self) -> None:
        try:
            self._driver.trim()
        except ActionError as error:
            log.warning("%s", error, extra={"host": self._host, "step": "capping consoles"})

    def _look_at(self, vm: str, *, waited: bool = False) -> None:
        """Have the pool look at `vm`, and again if it is looking at it already."""
        if vm in self._looking:
            self._looking[vm] = True
            return
        self._due.pop(vm, None)
        self._pool.submit(self._look_and_leave_word, vm, waited=waited)
        self._looking[vm] = False

    # ---- one look, in the pool --------------------------------------------------------------------------------------

    def _look_and_leave_word(self, vm: str, *, waited: bool) -> None:
        time.sleep(0)  # a thousand looks in a row would keep every other greenlet waiting
        found = Found()
        try:
            found = self._look(vm, waited=waited)
        except (ActionError, SetupError) as error:  # somebody acts on it, or this process cannot look
            log.debug("%s; the next look will tell", error, extra=self._fields(vm))
        except Exception:
            log.exception("%s: a look at it broke", vm, extra=self._fields(vm))
        finally:
            self._found.append((vm, found))
            self._ends.wake()

    def _look(self, vm: str, *, waited: bool) -> Found:
        record = self._records.read(vm)
        if not isinstance(record, VMRecord) or record.state not in WANTS_VMM:
            return Found()
        pidfd = self._driver.watch(record)
        if pidfd is not None or self._fate(record) is None:
            return Found(pidfd=pidfd)
        with self._records.lock(vm):
            now = self._records.read(vm)
            phase = self._fate(now) if isinstance(now, VMRecord) else None
            if not isinstance(now, VMRecord) or phase is None:
                return Found()
            return self._bring_back(now, phase, waited=waited)

    def _fate(self, record: VMRecord) -> Phase | None:
        """The phase out of which the VM is to be brought back; None when it is not."""
        facts = self._driver.observe(record)
        phase = phase_of(facts, record.state, failed=record.last_error is not None, parked=record.parked)
        if record.state not in WANTS_VMM or phase in NOT_RESTARTED[record.spec.restart.policy]:
            return None
        begun = bool(record.restarts) and record.attempt is None and phase in BEGUN
        return phase if phase in DIED or begun else None

    def _bring_back(self, record: VMRecord, phase: Phase, *, waited: bool) -> Found:
        """Start it, park it or wait, by its restart policy. The caller holds the action lock."""
        restart, began_s = record.spec.restart, self._clock.monotonic()
        recent = _recent(record, self._clock.now())
        if len(recent) >= restart.attempts:
            why = record.last_error or f"it was {phase}"
            self._records.write(replace(record, restarts=recent, parked=True, last_error=why))
            given_up = f"parked after {len(recent)} restarts within {restart.interval}"
            self._tell(record, phase, "failed_permanent", given_up)
            log.error(
                "%s: %s and parked, after %d restarts within %s", record.vm, phase, len(recent), restart.interval,
                extra=self._fields(record.vm),
            )  # fmt: skip
            return Found()
        if recent and not waited and (delay_s := seconds_of(restart.delay)) > 0:
            return Found(again_s=delay_s)
        # counted before it is tried, so that a start which takes this process with it counts, too
        record = replace(record, restarts=(*recent, self._clock.now()))
        self._records.write(record)
        try:
            self._driver.start(record, deadline_s=SUPERVISION.start_s)
            if record.state == "paused":
                self._driver.pause(record, deadline_s=SUPERVISION.start_s)
            pidfd = self._driver.watch(record)
        except ActionError as error:
            log.warning("%s; trying again", error, extra=self._fields(record.vm))
            self._records.write(replace(record, last_error=str(error)[: ORDERS.error_characters]))
            self._tell(record, phase, "failed_temporary", str(error)[: ORDERS.error_characters])
            return Found(again_s=max(SUPERVISION.retry_s, seconds_of(restart.delay)))
        if record.last_error is not None:
            self._records.write(replace(record, last_error=None))
        self._tell(record, phase, "done")
        log.warning(
            "%s: brought back, it was %s; restart %d of %d", record.vm, phase, len(recent) + 1, restart.attempts,
            extra={**self._fields(record.vm), "duration_s": self._clock.monotonic() - began_s},
        )  # fmt: skip
        return Found(pidfd=pidfd, again_s=0.0 if pidfd is None else None)  # it may have ended again already

    def _tell(self, record: VMRecord, phase: Phase, result: Result, error: str | None = None) -> None:
        now = self._clock.now()
        outcome = ActionOutcome(
            action_id="",
            vm=record.vm,
            host=self._host,
            verb="start",
            result=result,
            started_at=now if error else record.restarts[-1],  # which was written before it was begun
            finished_at=now,
            error=error,
            fleet=record.fleet,
            reasons=(f"it was {phase}",),
        )
        self._on_outcome(record.project, outcome)

    def _fields(self, vm: str) -> dict[str, object]:
        return {"vm": vm, "host": self._host, "step": "supervising"}


def _recent(record: VMRecord, now: datetime) -> tuple[datetime, ...]:
    """The restarts that count: those of the last `interval`."""
    since = now - timedelta(seconds=seconds_of(record.spec.restart.interval))
    return tuple(at for at in record.restarts if at > since)

"""Brings back VMMs that die without anybody's order, at once and without a controller. One thread (or greenlet) awaits
the ends of all VMMs; a small pool checks VMs whose VMM ended. A check trusts nothing from before: it reads the record
and the VMM's end again under the VM's action lock, so that it acts neither against an order nor beside one. What an
order failed to bring up is left to the next run.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import NamedTuple

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import seconds_of
from mikrom_reconcile.core.model.errors import ActionError, SetupError
from mikrom_reconcile.core.model.observed import ENDED, NOT_RESTARTED, WANTS_VMM, Phase, phase_of
from mikrom_reconcile.core.model.plan import ActionOutcome, Result
from mikrom_reconcile.host.ports import Driver, VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.system.processes import ExitWatcher, allow_descriptors
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.times_and_sizes import ORDERS, SUPERVISION

DIED: frozenset[Phase] = frozenset(ENDED.values()) - {"defined", "suspended"}
"""Phases of a VM whose VMM ended without an order; which of them are brought back is the restart policy's."""

BEGUN: frozenset[Phase] = frozenset({"defined", "starting", "failed"})
"""Phases in which a restart that was begun here (it is in the record) is to be tried again."""

Tell = Callable[[str, ActionOutcome], None]

log = logging.getLogger(__name__)


class CheckResult(NamedTuple):
    """A descriptor to await, or the seconds until the next check (0: now), or neither. A check after such a wait, and
    only that, may restart at once what has been restarted before.
    """

    pidfd: int | None = None
    again_s: float | None = None


class Supervisor:
    """Keeps the VMs of one host up. `start` it once; `stop` may be called by a signal handler. `on_rescan` is what else
    the host has to do from time to time, `on_outcome` hears of what was done, and its project.
    """

    def __init__(
        self, host: str, *, driver: Driver, records: Records, clock: Clock, on_rescan: Callable[[], None],
        rescan_s: float = SUPERVISION.rescan_s, on_outcome: Tell | None = None,
    ) -> None:  # fmt: skip
        self._host, self._driver, self._records, self._clock = host, driver, records, clock
        self._rescan_s, self._on_rescan, self._on_outcome = rescan_s, on_rescan, on_outcome
        self._stopped = False
        self._ends = ExitWatcher()
        self._inbox: deque[tuple[str, CheckResult | None]] = deque()  # None: an order was carried out
        self._checking: dict[str, bool] = {}  # whether to check again afterwards
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

    def notify(self, vm: str, result: CheckResult | None = None) -> None:
        """Check `vm` now, since an order has just been carried out on it; or apply the result of a check."""
        self._inbox.append((vm, result))
        self._ends.wake()

    # ---- the thread that waits: `_checking`, `_due` and `_ends` are its own ---------------------------------------

    def _supervise(self) -> None:
        while not self._stopped:
            try:
                self._wait()
                self._apply_results()
            except SetupError as error:  # the folder was moved, or cannot be read: said until somebody mends it
                log.error("%s", error, extra=self._fields())  # noqa: TRY400 - no mistake
                time.sleep(min(self._rescan_s, SUPERVISION.rescan_s))
            except Exception:  # whatever it is, the VMs need somebody to wait for them
                log.exception("supervision goes on in %g s", SUPERVISION.retry_s, extra=self._fields())
                time.sleep(SUPERVISION.retry_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ends.close()

    def _wait(self) -> None:
        now = time.monotonic()
        if now >= self._rescan_at:
            self._rescan_at = now + self._rescan_s
            self._pool.submit(self._trim)
            self._pool.submit(self._on_rescan)
            for vm in self._records.names():
                if vm not in self._ends and vm not in self._due and vm not in self._checking:
                    self._check_soon(vm)
        for vm in self._ends.wait(min((self._rescan_at, *self._due.values())) - now):
            self._check_soon(vm)

    def _apply_results(self) -> None:
        while self._inbox:
            vm, result = self._inbox.popleft()
            again = result is None
            if result is not None:
                again = self._checking.pop(vm) or result.again_s == 0
                self._ends.remove(vm)
                if result.pidfd is not None:
                    self._ends.add(vm, result.pidfd)
                if result.again_s:
                    self._due[vm] = time.monotonic() + result.again_s
            if again:
                self._check_soon(vm)
        now = time.monotonic()
        for vm in [vm for vm, due_s in self._due.items() if due_s <= now]:
            self._check_soon(vm, waited=True)

    def _trim(self) -> None:
        try:
            self._driver.trim()
        except ActionError as error:
            log.warning("%s", error, extra=self._fields() | {"step": "capping consoles"})

    def _check_soon(self, vm: str, *, waited: bool = False) -> None:
        if vm in self._checking:
            self._checking[vm] = True
            return
        self._due.pop(vm, None)
        self._pool.submit(self._check_and_report, vm, waited=waited)
        self._checking[vm] = False

    # ---- one check, in the pool -----------------------------------------------------------------------------------

    def _check_and_report(self, vm: str, *, waited: bool) -> None:
        time.sleep(0)  # a thousand checks in a row would keep every other greenlet waiting
        result = CheckResult()
        try:
            result = self._check(vm, waited=waited)
        except (ActionError, SetupError) as error:  # somebody acts on it, or this process cannot look
            log.debug("%s; the next check will show", error, extra=self._fields(vm))
        except Exception:
            log.exception("%s: its check failed", vm, extra=self._fields(vm))
        finally:
            self.notify(vm, result)

    def _check(self, vm: str, *, waited: bool) -> CheckResult:
        record = self._records.read(vm)
        if not isinstance(record, VMRecord) or record.state not in WANTS_VMM or record.unmanaged:
            return CheckResult()
        pidfd = self._driver.watch(record)
        if pidfd is not None or self._restart_reason(record) is None:
            return CheckResult(pidfd)
        with self._records.lock(vm):
            record = self._records.read(vm)
            phase = self._restart_reason(record) if isinstance(record, VMRecord) else None
            if not isinstance(record, VMRecord) or phase is None or self._stopped:
                return CheckResult()
            return self._bring_back(record, phase, waited=waited)

    def _restart_reason(self, record: VMRecord) -> Phase | None:
        """The phase out of which the VM is to be brought back; None when it is not."""
        facts = self._driver.observe(record)
        phase = phase_of(facts, record.state, failed=record.last_error is not None, crash_loop=record.crash_loop)
        if record.state not in WANTS_VMM or record.unmanaged or phase in NOT_RESTARTED[record.spec.restart.policy]:
            return None
        begun = bool(record.restarts) and record.attempt is None and phase in BEGUN
        return phase if phase in DIED or begun else None

    def _bring_back(self, record: VMRecord, phase: Phase, *, waited: bool) -> CheckResult:
        """Start it, give it up or wait, by its restart policy. The caller holds the action lock."""
        restart = record.spec.restart
        since = self._clock.now() - timedelta(seconds=seconds_of(restart.interval))
        recent = tuple(at for at in record.restarts if at > since)
        if len(recent) >= restart.attempts:
            error = record.last_error or f"it was {phase}"
            self._records.write(replace(record, restarts=recent, crash_loop=True, last_error=error))
            why = f"a crash loop: {len(recent)} restarts within {restart.interval}"
            self._report(record, phase, "failed_permanent", why, level=logging.ERROR)
            return CheckResult()
        if recent and not waited and (delay_s := seconds_of(restart.delay)) > 0:
            return CheckResult(again_s=delay_s)
        # counted before it is tried, so that a start which takes this process with it counts, too
        record = replace(record, restarts=(*recent, self._clock.now()))
        self._records.write(record)
        try:
            self._driver.start(record, deadline_s=SUPERVISION.start_s)
            if record.state == "paused":
                self._driver.set_paused(record, paused=True, deadline_s=SUPERVISION.start_s)
            pidfd = self._driver.watch(record)
        except ActionError as error:
            reason = str(error)[: ORDERS.error_characters]
            self._records.write(replace(record, last_error=reason))
            self._report(record, phase, "failed_temporary", reason)
            return CheckResult(again_s=max(SUPERVISION.retry_s, seconds_of(restart.delay)))
        if record.last_error is not None:
            self._records.write(replace(record, last_error=None))
        self._report(record, phase, "done")
        return CheckResult(pidfd, again_s=0.0 if pidfd is None else None)  # it may have ended again already

    def _report(
        self, record: VMRecord, phase: Phase, result: Result, error: str | None = None, *, level: int = logging.WARNING
    ) -> None:
        now = self._clock.now()
        began_at = now if error else record.restarts[-1]  # which was written before it was begun
        count = f"restart {len(record.restarts)} of {record.spec.restart.attempts}"
        fields = self._fields(record.vm) | {"duration_s": (now - began_at).total_seconds()}
        message = f"it was {phase}; {error}" if error else f"brought back, it was {phase}; {count}"
        log.log(level, "%s: %s", record.vm, message, extra=fields)
        outcome = ActionOutcome(
            action_id="",
            vm=record.vm,
            host=self._host,
            verb="start",
            result=result,
            started_at=began_at,
            finished_at=now,
            error=error,
            fleet=record.fleet,
            reasons=(f"it was {phase}",),
        )
        if self._on_outcome is not None:
            self._on_outcome(record.project, outcome)

    def _fields(self, vm: str = "") -> dict[str, object]:
        return {"vm": vm, "host": self._host, "step": "supervising"}

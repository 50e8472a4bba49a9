"""The actions, step by step: what each of them does on a host. A run records what was ordered before it acts, and that
a VMM goes down before it records another spec for it; what a VMM changes while it runs is recorded once it was
verified. So a `kill -9` between any two steps, or a step that fails, leaves a record that is true of a VMM that lives,
the next observation has a phase for it, and the same order or that of the next run ends what was begun.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import State
from mikrom_reconcile.core.model.errors import ActionError, PermanentError, TemporaryError
from mikrom_reconcile.core.model.fields import costs, counted_drift, impact_of
from mikrom_reconcile.core.model.observed import HEALTHY, SATISFIES, WANTS_VMM, Attempt, Drift, ObservedVM, VMMFacts
from mikrom_reconcile.core.model.plan import Impact, Order, Result, Verb
from mikrom_reconcile.host.checks import Trials
from mikrom_reconcile.host.errors import translate_errors
from mikrom_reconcile.host.observe import row_of
from mikrom_reconcile.host.orders.next_record import next_record, provenance_fields
from mikrom_reconcile.host.orders.preconditions import Reservations, check
from mikrom_reconcile.host.ports import Driver, VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.times_and_sizes import ORDERS

WHILE_IT_RUNS: frozenset[Impact] = frozenset({"record", "live"})  # impacts of what can change without a restart

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class ActionRun:
    """One order being carried out, under the VM's action lock. `found` is the record before it, `ordered` the one that
    it asks for, `record` what is on disk now; None for none, of which there may be a `tombstone`. `seen` is what the
    last step verified, `note` what has to be said of how it was done.
    """

    order: Order
    found: VMRecord | None
    tombstone: VMRecord | None
    driver: Driver
    records: Records
    clock: Clock
    reservations: Reservations
    seen: ObservedVM | None = None
    note: str = ""

    def __post_init__(self) -> None:
        self.record = self.found
        home = self.records.new_home(self.order.action.vm) if self.found is None else self.found.made_as
        trial, vm, now = self.found.trial if self.found else None, self.order.action.vm, self.clock.now()
        proven = trial is not None and Trials(self.records.state_dir).proof_of(vm, trial) is not None
        self.ordered = next_record(
            self.order, self.found, tombstone=self.tombstone, made_as=home, now=now, proven=proven
        )
        self._began_s = self.clock.monotonic()
        self._may_have_started = False

    def carry_out(self, on_step: Callable[[str, str], None]) -> Result:
        """Check and do what is ordered step by step, unless it was done and still holds. Raises whatever a step does.
        `on_step` hears of each step before it is done, and of the end.
        """
        vm = self.order.action.vm
        if self._is_done():
            self.forget_failures()
            return "already_done"
        with translate_errors(vm, f"checking what it is ordered to be by {self.order.action.verb}"):
            check(self.order.action, self.found, self.ordered, driver=self.driver, reservations=self.reservations)
        for step in self._steps():
            if step is not PAUSE or self.ordered.state == "paused":
                on_step(vm, step[0])
                self._do(*step)
        on_step(vm, "done")
        return "done"

    def _do(self, name: str, act: Callable[[ActionRun], None]) -> None:
        self._remaining_s(name)
        began_s, level, trouble = self.clock.monotonic(), logging.INFO, ""
        try:
            act(self)
        except BaseException as error:
            level, trouble = logging.WARNING, f": failed: {error}"
            raise
        finally:
            fields = log_fields(self.order, name, self.clock.monotonic() - began_s)
            log.log(level, "%s: %s%s", self.order.action.vm, name, trouble, extra=fields)

    def _steps(self) -> tuple[Step, ...]:
        if self.found is None and self.order.action.verb == "import":
            return ADOPT, RECORD, VERIFY
        steps = STEPS[self.order.action.verb]
        if START not in steps or STOP in steps or self.found is None:
            return steps
        if self.found.state == "absent":
            return FINISH_DELETE, *steps
        facts = self.driver.observe(self.found)
        if facts.status in {"none", "starting"}:
            return steps
        odd = {impact_of(drift.path) for drift in facts.drift}
        if facts.status not in HEALTHY or not odd | costs(self.found.spec, self.ordered.spec) <= WHILE_IT_RUNS:
            return STEPS["restart"]
        was_paused, is_paused = facts.status == "paused", self.ordered.state == "paused"
        switch = () if was_paused == is_paused else (PAUSE if is_paused else RESUME,)
        return CHANGE, RECORD, *switch, VERIFY

    def overtaken(self) -> str:
        """Why a VM that was down or silent when this was planned, and runs by now, is not to go down; "" if it is."""
        action, found = self.order.action, self.found
        if found is None or found.action_id == action.id:
            return ""
        respecified = action.verb == "start" and not costs(found.spec, self.ordered.spec) <= WHILE_IT_RUNS
        was_silent = action.verb == "restart" and action.expect.silent
        if not (respecified or was_silent) or self.driver.observe(found).status not in HEALTHY:
            return ""
        if was_silent:
            return "its VMM answers again: the next run plans from that"
        # a start was not held to the share that may be down
        return "it has come up by itself, and only a restart brings it what is ordered: the next run plans that"

    def _is_done(self) -> bool:
        action = self.order.action
        if self.found is None or self.found.action_id != action.id or action.desired is None:
            return False
        self._observe(self.found)
        return not self._drift(WHILE_IT_RUNS) if action.verb == "update" else self._holds(action.desired.state)

    def _remaining_s(self, step: str) -> float:
        """Seconds until the deadline. Raises TemporaryError when it has passed."""
        deadline_s = self.order.action.deadline_s
        left_s = deadline_s - (self.clock.monotonic() - self._began_s)
        if left_s <= 0:
            raise TemporaryError(f"its deadline of {deadline_s:g} s has passed", vm=self.order.action.vm, step=step)
        return left_s

    # ---- the steps --------------------------------------------------------------------------------------------

    def record_stopping(self) -> None:
        """Order the VM down under its old spec: the new one is recorded once no VMM runs that; a halt at once."""
        halt, order = self.ordered.halt or self._record.halt, provenance_fields(self.order, self._record)
        self._write(replace(self._record, state="stopped", last_error=None, halt=halt, **order))

    def record_order(self) -> None:
        """Record what the VM is to be from now on. Links follow at once where no start is to bring them there."""
        ordered, goes_down = self.ordered, self.ordered.state not in WANTS_VMM
        if goes_down and self.found and self.found.spec.network_interfaces != ordered.spec.network_interfaces:
            self.driver.update(ordered, deadline_s=self._remaining_s(RECORD[0]))
        self._write(ordered)
        if goes_down:
            self.reservations.release(ordered.vm)

    def adopt(self) -> None:
        """Take over what was started by hand, before it is recorded: a record alone has another one started beside."""
        desired = self.order.action.desired
        assert desired is not None and desired.adopts is not None, "without, nothing is ordered"  # noqa: S101, PT018
        self.driver.adopt(self.ordered, desired.adopts[1], self._judge, deadline_s=self._remaining_s(ADOPT[0]))

    def _judge(self, facts: VMMFacts) -> None:
        self.seen = row_of(self.ordered, facts, self.order.action.host)
        if not self._holds(self.ordered.state):
            what = ", ".join((f"expected {self.ordered.state}, found {self.seen.phase}", *_in_words(self._drift())))
            raise PermanentError(f"{what}: correct the spec")

    def rename(self) -> None:
        """Give the record its new name; all that runs keeps the one that it has."""
        assert self.found is not None, "nobody renames what is not there"  # noqa: S101
        self.records.rename(self.ordered, self.found.vm)
        self.record = self.ordered
        if self.record.spec.has_metadata and self.record.state in WANTS_VMM:
            with suppress(ActionError):  # its guest reads its new name; where that fails, the next run sees it as drift
                self.driver.update(self.record, deadline_s=self._remaining_s("telling its guest"))

    def stop(self) -> None:
        """Shut the guest down, or kill it when it will not go."""
        # half of what is left at most, so that a guest that will not go leaves time to kill it and to start it
        self.driver.stop(self._record, grace_s=min(ORDERS.shutdown_grace_s, self._remaining_s("stopping") / 2))

    def stop_best_effort(self) -> None:
        """As `stop`, or go on: a guest that cannot be stopped is killed when its driver removes it."""
        try:
            self.stop()
        except ActionError as error:
            log.warning("%s; deleting it all the same", error, extra=log_fields(self.order, "stopping"))

    def start(self) -> None:
        """Boot it, if it is to be up."""
        record = self._record
        if record.state in WANTS_VMM:
            self._may_have_started = True
            self.note = self.driver.start(record, deadline_s=self._remaining_s("starting"))
            if not self.note and self.found is not None and self.found.state == "suspended":
                self.note = "a cold boot: no memory of it was on disk"

    def suspend(self) -> None:
        """Write its memory to disk: until that is whole, nothing says that the VM is to go down."""
        self.driver.suspend(self._record, deadline_s=self._remaining_s(SUSPEND[0]))

    def end(self) -> None:
        """End a VMM whose guest goes on from its memory later, if there was one."""
        self.driver.stop(self._record, grace_s=0)

    def set_paused(self, *, paused: bool) -> None:
        """Pause or resume the guest. One that was down boots first: what is paused is a guest, not a VMM."""
        deadline_s = self._remaining_s("pausing" if paused else "resuming")
        self.driver.set_paused(self._record, paused=paused, deadline_s=deadline_s)

    def change(self) -> None:
        """Change what can be changed while it runs, and verify it. Repeated once the order is recorded: only then do
        addresses and rules go that this VM alone used.
        """
        ordered, before = self.ordered, self._record
        if ordered.state not in WANTS_VMM:
            return
        self._observe(ordered)
        for _ in range(2):  # the second time for what others still used the first time
            if ordered.spec != before.spec or self._drift(WHILE_IT_RUNS):
                self.driver.update(ordered, deadline_s=self._remaining_s("changing it while it runs"))
                self._observe(ordered)
                before = ordered
        if left := self._drift(WHILE_IT_RUNS):
            differences = ", ".join(_in_words(left))
            raise TemporaryError(f"it was changed, and still {differences}", vm=ordered.vm, step="verifying")
        if self._holds(ordered.state):
            self.ordered = replace(ordered, attempt=None, last_error=None)

    def delete(self) -> None:
        """Remove what the driver made."""
        self.driver.delete(self._record)

    def remove_record(self) -> None:
        """Turn the record into a tombstone."""
        self.records.remove(self._record)
        self.record = None

    def verify(self) -> None:
        """Check that the VM is observed as ordered; only then are earlier failures cleared."""
        record = self._record
        row = self._observe(record)
        if not self._holds(record.state):
            message = ", ".join((f"expected {record.state}, found {row.phase}", *_in_words(row.drift)))
            raise TemporaryError(message, vm=record.vm, step="verifying")
        self.forget_failures()

    def forget_failures(self) -> None:
        """Clear the error and the attempts of a VM that is as ordered."""
        cleared = replace(self._record, attempt=None, last_error=None)
        if self.seen is not None:
            self._write(cleared, or_before=True)  # a power cut ends the VMM, too, and then they are not forgotten
            self.seen = replace(self.seen, attempt=None, last_error=None)

    # ---- when a step failed -----------------------------------------------------------------------------------

    def clean_up(self) -> str:
        """End the VMM that this run may have started. Returns what became of it, "" where there is none."""
        if not self._may_have_started:
            return ""
        try:
            self.driver.stop(self._record, grace_s=0)
            self._left = left = self.driver.observe(self._record)
        except ActionError as error:
            return f"ending its VMM failed too: {error}"
        return "no VMM was left behind" if left.status == "none" else f"a VMM is left (pid {left.pid})"

    def note_failure(self, error: str, *, is_temporary: bool) -> None:
        """Keep the error in the record and count the attempt. Raises TemporaryError when it cannot be written. Of an
        order that was refused before anything was done only the attempt is recorded.
        """
        record, desired, vm = self.record, self.order.action.desired, self.order.action.vm
        if record is self.found and is_temporary:
            return  # nothing was done, so nothing failed but the order
        attempt = record.attempt if record else self.records.attempt(vm)
        if desired is not None:
            same = attempt if attempt and attempt.spec_digest == desired.spec_digest else None
            attempt = Attempt(
                spec_digest=desired.spec_digest,
                count=1 + (same.count if same else 0),
                result="failed_temporary" if is_temporary else "failed_permanent",
                repair=same.repair if same else record is not None and record.spec_digest == desired.spec_digest,
                error=error[: ORDERS.error_characters],
            )
        if record is not None:
            lives = record.state in WANTS_VMM and self._left is not None and self._left.status != "none"
            failed = None if lives else error[: ORDERS.error_characters]  # it says why a VM is down
            last_error = record.last_error if record is self.found else failed
            self._write(replace(record, last_error=last_error, attempt=attempt))
        elif attempt is not None:
            self.records.note_attempt(vm, attempt)

    def row_left(self) -> ObservedVM | None:
        """The row of what is there in the end; None where nothing has this name, or it could not be looked at."""
        with suppress(ActionError):
            if self.record is not None and self.record.vm == self.order.action.vm and self._left is not None:
                return row_of(self.record, self._left, self.order.action.host, self.driver.links())
        return None

    @cached_property
    def _left(self) -> VMMFacts | None:
        """What is there in the end, looked at once; what happened to the order is worth more than a failed look."""
        with suppress(ActionError):
            return self.driver.observe(self.record) if self.record else None
        return None

    def _observe(self, record: VMRecord) -> ObservedVM:
        links = self.driver.links(but=record.vm)
        self.seen = row_of(record, self.driver.observe(record), self.order.action.host, links)
        return self.seen

    def _holds(self, state: State) -> bool:
        return self.seen is not None and self.seen.phase in SATISFIES[state] and not self._drift()

    def _drift(self, impacts: frozenset[Impact] | None = None) -> tuple[Drift, ...]:
        """The drift that was observed last and that the spec does not ignore; only that of such impacts."""
        desired, drift = self.order.action.desired, self.seen.drift if self.seen else ()
        counted = counted_drift(drift, desired) if desired else drift
        return tuple(item for item in counted if impacts is None or impact_of(item.path) in impacts)

    @property
    def _record(self) -> VMRecord:
        assert self.record is not None, "every action records the order first"  # noqa: S101
        return self.record

    def _write(self, record: VMRecord, *, or_before: bool = False) -> None:
        if record != self.record:
            self.records.write(record, or_before=or_before)
            self.record = record


Step = tuple[str, Callable[[ActionRun], None]]

FINISH_DELETE: Step = ("finishing an earlier delete", ActionRun.delete)
RECORD: Step = ("recording the order", ActionRun.record_order)
ADOPT: Step = ("taking it over", ActionRun.adopt)
STOP: Step = ("stopping", ActionRun.stop)
START: Step = ("starting", ActionRun.start)
CHANGE: Step = ("changing it while it runs", ActionRun.change)
SUSPEND: Step = ("writing its memory to disk", ActionRun.suspend)
PAUSE: Step = ("pausing", partial(ActionRun.set_paused, paused=True))
RESUME: Step = ("resuming", partial(ActionRun.set_paused, paused=False))
VERIFY: Step = ("verifying", ActionRun.verify)

BRING_UP = (RECORD, START, PAUSE, VERIFY)

STEPS: dict[Verb, tuple[Step, ...]] = {
    "create": BRING_UP,
    "start": BRING_UP,
    "pause": BRING_UP,
    "resume": BRING_UP,
    "stop": (RECORD, STOP, VERIFY),
    "suspend": (SUSPEND, RECORD, ("ending its VMM", ActionRun.end), VERIFY),
    "update": (CHANGE, RECORD, ("leaving what it no longer uses", ActionRun.change)),
    "restart": (("recording that it goes down", ActionRun.record_stopping), STOP, *BRING_UP),
    "rename": (("renaming its record", ActionRun.rename),),
    "import": (RECORD,),
    "forget": (RECORD,),
    "delete": (
        RECORD,
        ("stopping", ActionRun.stop_best_effort),
        ("removing what its driver made", ActionRun.delete),
        ("removing its record", ActionRun.remove_record),
    ),
}
"""Every verb. A create finishes an interrupted delete first. What brings a VM up finds one that is up already and
pauses or resumes it, changed if need be; what only a restart changes it restarts. PAUSE is only for a VM that is to be
paused."""


def _in_words(drift: tuple[Drift, ...]) -> list[str]:
    return [f"{item.path} is {item.actual}" for item in drift]


def log_fields(order: Order, step: str = "", duration_s: float = 0.0) -> dict[str, object]:
    """What every line of the log carries, so that it can be searched by. No `step`: the whole order."""
    action = order.action
    return {"vm": action.vm, "host": action.host, "run": order.run_id, "step": step, "duration_s": duration_s}

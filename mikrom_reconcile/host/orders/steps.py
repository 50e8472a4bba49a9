"""The verbs, step by step: what each of them does on a host.

A deed writes what was ordered before it acts, and orders a VMM down before it records another spec for it; what a
VMM changes while it runs is recorded once it was seen to. So a `kill -9` between any two steps, or a step that fails,
leaves a record that tells no lie about a VMM that lives, the next observation has a phase for it, and the same order
or that of the next run ends what was begun. Whether an order may be carried out is decided before (`fence.py`); what
is told about it afterwards, in `execute.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import State
from mikrom_reconcile.core.model.errors import ActionError, PermanentError, TemporaryError
from mikrom_reconcile.core.model.fields import costs, impact_of, needs_restart
from mikrom_reconcile.core.model.lifecycle import HEALTHY, SATISFIES, WANTS_VMM
from mikrom_reconcile.core.model.observed import Attempt, Drift, FailedResult, ObservedVM
from mikrom_reconcile.core.model.plan import Impact, Verb
from mikrom_reconcile.core.model.run import Order
from mikrom_reconcile.host.observe import drift_of, row_of
from mikrom_reconcile.host.orders.next_record import next_record, stamp
from mikrom_reconcile.host.orders.reservations import Memory
from mikrom_reconcile.host.ports import Clock, Driver, VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.limits import ORDERS

EVERYTHING: frozenset[Impact] = frozenset({"record", "live", "restart", "replace"})
WHILE_IT_RUNS: frozenset[Impact] = frozenset({"record", "live"})
"""Impacts of what can change without a restart."""

log = logging.getLogger(__name__)


class Deed:
    """One order being carried out, under the VM's action lock.

    `record` is what is on disk now, None for nothing. `seen` is what the last step verified.
    """

    def __init__(
        self,
        order: Order,
        found: VMRecord | None,
        *,
        driver: Driver,
        records: Records,
        clock: Clock,
        memory: Memory,
    ) -> None:
        self.order = order
        self.found = found
        self.record = found
        self._driver = driver
        self._records = records
        self._clock = clock
        self._memory = memory
        self._began_s = clock.monotonic()
        self.seen: ObservedVM | None = None
        self._may_have_started = False
        tombstone = records.tombstone(order.action.vm) if found is None else None
        self._ordered = next_record(order, found, tombstone=tombstone, now=clock.now())
        self._pauses = self._ordered.state == "paused"

    def steps(self) -> tuple[Step, ...]:
        """What is to be done, with names that fit after "while"."""
        return tuple(step for step in self._all_steps() if step is not PAUSE or self._pauses)

    def _all_steps(self) -> tuple[Step, ...]:
        steps = STEPS[self.order.action.verb]
        if START not in steps or STOP in steps or self.found is None:
            return steps
        if self.found.state == "absent":
            return FINISH_DELETE, *steps
        facts = self._driver.observe(self.found)
        if facts.status in {"none", "starting"}:
            return steps
        odd = {impact_of(drift.path) for drift in drift_of(self.found.spec, facts)}
        if facts.status in HEALTHY and odd | costs(self.found.spec, self._ordered.spec) <= WHILE_IT_RUNS:
            paused = facts.status == "paused"
            return (CHANGE, RECORD, *([] if paused == self._pauses else [PAUSE if self._pauses else RESUME]), VERIFY)
        return STEPS["restart"]

    def already_done(self) -> bool:
        """Whether this very order was carried out before and still holds."""
        action = self.order.action
        if self.found is None or self.found.action_id != action.id or action.desired is None:
            return False
        self._look(self.found)
        return not self._drift(WHILE_IT_RUNS) if action.verb == "update" else self._holds(action.desired.state)

    def check(self) -> None:
        """Refuse what cannot work or would hurt, before anything is written. Raises PermanentError, TemporaryError."""
        action = self.order.action
        step = f"checking what it is ordered to be by {action.verb}"
        if self.found is not None and self.found.policy.prevent_destroy and self._loses_disks(self.found):
            way_out = "lift that first, with lifecycle: {prevent_destroy: false}"
            raise PermanentError(
                f"it would lose its data, and is recorded as protected; {way_out}", vm=action.vm, step=step
            )
        if action.desired is None or action.verb == "stop":
            return
        if why_not := self._driver.unsupported(action.desired.spec):
            raise PermanentError(f"this host cannot run it: {why_not}", vm=action.vm, step=step)
        need_mib = self._driver.memory_mib(action.desired.spec)
        if self._ordered.state in WANTS_VMM and (
            why_not := self._memory.promise(action.vm, need_mib, action.mem_limit_mib)
        ):
            raise PermanentError(f"{why_not}; stop some, or give it less", vm=action.vm, step=step)
        if holder := self._memory.claim(action.vm, action.desired.addresses.values()):
            raise TemporaryError(f"{holder}: two VMs of a host cannot have one address", vm=action.vm, step=step)
        if self.found is None and (facts := self._driver.observe(self._ordered)).status != "none":
            # never our own doing (the record is there first and goes last), so nobody can say whose it is
            message = f"a VMM of that name lives here without a record (pid {facts.pid}): restore that, or kill it"
            raise PermanentError(message, vm=action.vm, step=step)
        respecified = action.verb == "update" and self.found and needs_restart(self.found.spec, action.desired.spec)
        if respecified and self.found and self._driver.observe(self.found).status != "none":
            raise PermanentError("its spec changes only while it is down: restart it", vm=action.vm, step=step)

    def _loses_disks(self, found: VMRecord) -> bool:
        """Whether the VM goes, or the root disk that it wrote to is made anew, now or when it starts."""
        desired, rootfs = self.order.action.desired, found.spec.boot and found.spec.boot.rootfs
        if desired is None:
            return True
        return bool(rootfs and not rootfs.read_only) and "replace" in costs(found.spec, desired.spec)

    def remaining_s(self, step: str) -> float:
        """Seconds until the deadline. Raises TemporaryError when it has passed."""
        deadline_s = self.order.action.deadline_s
        left_s = deadline_s - (self._clock.monotonic() - self._began_s)
        if left_s <= 0:
            raise TemporaryError(f"its deadline of {deadline_s:g} s has passed", vm=self.order.action.vm, step=step)
        return left_s

    # ---- the steps --------------------------------------------------------------------------------------------

    def finish_delete(self) -> None:
        """What an interrupted delete left goes before its name is used again."""
        self._driver.delete(self._now())

    def withdraw(self) -> None:
        """Order the VM down under its old spec: the new one is recorded once no VMM runs the old one."""
        record = self._now()
        self._write(replace(record, state="stopped", last_error=None, **stamp(self.order, record)))

    def record_order(self) -> None:
        """Write down what the VM is to be from now on."""
        self._write(self._ordered)
        if self._ordered.state not in WANTS_VMM:
            self._memory.forget(self._ordered.vm)

    def stop(self) -> None:
        """Shut the guest down, or kill it when it will not go."""
        # half of what is left at most, so that a guest that will not go leaves time to kill it and to start it
        self._driver.stop(self._now(), grace_s=min(ORDERS.shutdown_grace_s, self.remaining_s("stopping") / 2))

    def stop_or_go_on(self) -> None:
        """A guest that cannot be stopped in order is killed when its driver removes it."""
        try:
            self.stop()
        except ActionError as error:
            log.warning("%s; deleting it all the same", error, extra=log_fields(self.order, "stopping"))

    def start(self) -> None:
        """Boot it, if it is to be up."""
        record = self._now()
        if record.state in WANTS_VMM:
            self._may_have_started = True
            self._driver.start(record, deadline_s=self.remaining_s("starting"))

    def pause(self) -> None:
        """Let the guest stand still. One that was down boots first: what is paused is a guest, not a VMM."""
        self._driver.pause(self._now(), deadline_s=self.remaining_s("pausing"))

    def resume(self) -> None:
        """Let the guest go on."""
        self._driver.resume(self._now(), deadline_s=self.remaining_s("resuming"))

    def change(self) -> None:
        """Change what can be changed while it runs, and see that it is."""
        ordered, before = self._ordered, self._now()
        if ordered.state not in WANTS_VMM:
            return
        self._look(ordered)
        for _ in range(2):  # the second time for what others had a use for the first time
            if ordered.spec != before.spec or self._drift(WHILE_IT_RUNS):
                self._driver.update(ordered, deadline_s=self.remaining_s("changing it while it runs"))
                self._look(ordered)
                before = ordered
        if left := self._drift(WHILE_IT_RUNS):
            told = ", ".join(_in_words(left))
            raise TemporaryError(f"it was changed, and still {told}", vm=ordered.vm, step="verifying")
        if self._holds(ordered.state):
            self._ordered = replace(ordered, attempt=None, last_error=None)

    def leave_links(self) -> None:
        """What of its bridges only this VM had a use for goes once its record says that it has none."""
        if self._ordered.spec.network_interfaces:
            self.change()

    def delete(self) -> None:
        """Remove what the driver made."""
        self._driver.delete(self._now())

    def remove_record(self) -> None:
        """Leave a tombstone in its place."""
        self._records.remove(self._now())
        self.record = None

    def verify(self) -> None:
        """Only what is observed counts as done, and only then are earlier failures forgotten."""
        record = self._now()
        row = self._look(record)
        if not self._holds(record.state):
            message = ", ".join((f"it was to be {record.state} and is {row.phase}", *_in_words(row.drift)))
            raise TemporaryError(message, vm=record.vm, step="verifying")
        self.forget_failures()

    def forget_failures(self) -> None:
        """What is as ordered has no error and no attempts."""
        cleared = replace(self._now(), attempt=None, last_error=None)
        if self.seen is not None:
            self._write(cleared, or_before=True)  # a power cut ends the VMM, too, and then they are not forgotten
            self.seen = replace(self.seen, attempt=None, last_error=None)

    # ---- when a step failed -----------------------------------------------------------------------------------

    def clean_up(self) -> str:
        """End the VMM that this deed may have started, and say what came of it; "" where there is none."""
        if not self._may_have_started:
            return ""
        try:
            self._driver.stop(self._now(), grace_s=0)
            facts = self._driver.observe(self._now())
        except ActionError as error:
            return f"ending its VMM failed too: {error}"
        return "no VMM was left behind" if facts.status == "none" else f"a VMM is left (pid {facts.pid})"

    def note_failure(self, error: str, result: FailedResult) -> None:
        """Keep the error in the record and count the attempt. Raises TemporaryError when it cannot be written.

        Of an order that was refused before anything was done only the attempt is kept: what is there is as it was.
        """
        record, desired, vm = self.record, self.order.action.desired, self.order.action.vm
        if record is self.found and result == "failed_temporary":
            return  # nothing was done, so nothing failed but the order
        attempt = record.attempt if record else self._records.attempt(vm)
        if desired is not None:
            same = attempt if attempt and attempt.spec_digest == desired.spec_digest else None
            attempt = Attempt(
                spec_digest=desired.spec_digest,
                count=1 + (same.count if same else 0),
                result=result,
                repair=same.repair if same else record is not None and record.spec_digest == desired.spec_digest,
                error=error[: ORDERS.error_characters],
            )
        if record is None:
            if attempt is not None:
                self._records.note_attempt(vm, attempt)
        elif record is self.found:
            self._write(replace(record, attempt=attempt))
        else:
            last_error = None if self._lives(record) else error[: ORDERS.error_characters]
            self._write(replace(record, last_error=last_error, attempt=attempt))

    def _lives(self, record: VMRecord) -> bool:
        """Whether it is up as ordered, for all that failed: `last_error` says why a VM is down."""
        with suppress(ActionError):
            return record.state in WANTS_VMM and self._driver.observe(record).status != "none"
        return False

    def _look(self, record: VMRecord) -> ObservedVM:
        links = self._driver.links(but=record.vm)
        self.seen = row_of(record, self._driver.observe(record), self.order.action.host, links)
        return self.seen

    def _holds(self, state: State) -> bool:
        return self.seen is not None and self.seen.phase in SATISFIES[state] and not self._drift()

    def _drift(self, mended_by: frozenset[Impact] = EVERYTHING) -> tuple[Drift, ...]:
        """The drift that was seen last and that somebody minds, as far as it is mended so."""
        desired, drift = self.order.action.desired, self.seen.drift if self.seen else ()
        ignored = desired.ignore_changes if desired else ()
        return tuple(item for item in drift if item.path not in ignored and impact_of(item.path) in mended_by)

    def _now(self) -> VMRecord:
        assert self.record is not None, "every verb records the order first"  # noqa: S101
        return self.record

    def _write(self, record: VMRecord, *, or_before: bool = False) -> None:
        if record != self.record:
            self._records.write(record, or_before=or_before)
            self.record = record


Step = tuple[str, Callable[[Deed], None]]

FINISH_DELETE: Step = ("finishing an earlier delete", Deed.finish_delete)
RECORD: Step = ("recording the order", Deed.record_order)
STOP: Step = ("stopping", Deed.stop)
START: Step = ("starting", Deed.start)
CHANGE: Step = ("changing it while it runs", Deed.change)
PAUSE: Step = ("pausing", Deed.pause)
RESUME: Step = ("resuming", Deed.resume)
VERIFY: Step = ("verifying", Deed.verify)

BRING_UP = (RECORD, START, PAUSE, VERIFY)

STEPS: dict[Verb, tuple[Step, ...]] = {
    "create": BRING_UP,
    "start": BRING_UP,
    "pause": BRING_UP,
    "resume": BRING_UP,
    "stop": (RECORD, STOP, VERIFY),
    "update": (CHANGE, RECORD, ("leaving what it no longer uses", Deed.leave_links)),
    "restart": (("recording that it goes down", Deed.withdraw), STOP, *BRING_UP),
    "delete": (
        RECORD,
        ("stopping", Deed.stop_or_go_on),
        ("removing what its driver made", Deed.delete),
        ("removing its record", Deed.remove_record),
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

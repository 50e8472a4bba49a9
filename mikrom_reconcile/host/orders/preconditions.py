"""Whether an order may be carried out: ordered rules, the first that matches decides. `rejection_of` compares the order
with the VM's record. Two controllers, two Beats, a message delivered twice or late, and a paused process that wakes up
are all the same case here: the order's token, uid and generation are not the host's. `check` refuses what cannot work
on this host, or would hurt.
"""

import threading
from collections.abc import Callable

import msgspec

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.fields import costs, needs_restart
from mikrom_reconcile.core.model.observed import WANTS_VMM, ObservedVM
from mikrom_reconcile.core.model.plan import Action, Expect, Order, Result
from mikrom_reconcile.core.specs.networks import port_name
from mikrom_reconcile.host.ports import Driver, VMRecord
from mikrom_reconcile.host.records import Records, UnreadableRecord
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.times_and_sizes import ORDERS

Claims = frozenset[tuple[str, bool]]  # what a VM has, and whether no other VM of the host may have it


class Reservations:
    """What VMs of this host were promised by their records and by orders under way. Any number of threads may share it.
    Memory, of which a VMM takes any size and dies of it later: all VMs that are ordered to be up were promised no more
    than the machine has, or than its inventory allows instead, since they may touch all of it at any time. Claims:
    addresses, which control may have given to two, ports, existing files. vCPUs are not limited: they only share time.
    """

    def __init__(self, *, mem_size_mib: int, need_mib: Callable[[VMSpec], int], records: Records, clock: Clock) -> None:
        self._mem_size_mib, self._need_mib, self._records, self._clock = mem_size_mib, need_mib, records, clock
        self._lock = threading.Lock()
        self._mib: dict[str, int] = {}  # by records
        self._claims: dict[str, Claims] = {}
        self._pending_mib: dict[str, int] = {}  # no record says so yet, or it says that the VM goes down for a restart
        self._pending_claims: dict[str, Claims] = {}
        self._holds_until_s = float("-inf")

    def reserve(self, vm: str, need_mib: int, limit_mib: int | None = None) -> str:
        """Keep memory for `vm` until `commit`. Returns why that cannot be, with what is left, or "". `limit_mib` is
        what the inventory allows in all, instead of what the host has.
        """
        limit_mib = self._mem_size_mib if limit_mib is None else limit_mib
        with self._lock:
            self._count()
            mib = self._mib | self._pending_mib
            own_mib = mib.get(vm, 0)
            left, others = limit_mib - sum(mib.values()) + own_mib, len(mib) - (vm in mib)
            if need_mib <= left or need_mib <= own_mib:  # what was promised is kept
                self._pending_mib[vm] = need_mib
                return ""
        return (
            f"it needs {need_mib} MiB and {max(0, left)} MiB are left: of {limit_mib} MiB that"
            f" {'the host has' if limit_mib == self._mem_size_mib else 'the inventory allows'},"
            f" {limit_mib - left} are promised to {others} other VMs"
        )

    def claim(self, vm: str, wanted: Claims) -> str:
        """Keep what is wanted for `vm` until `commit`. Returns who has some of it already, "" if nobody has."""
        if not wanted:
            return ""
        with self._lock:
            self._count()
            for other, its in (*self._claims.items(), *self._pending_claims.items()):
                taken = {name for name, alone in wanted if (name, True) in its or (alone and (name, False) in its)}
                if other != vm and taken:
                    return f"{min(taken)} is {other}'s here"
            self._pending_claims[vm] = wanted
        return ""

    def release(self, vm: str) -> None:
        """The VM is recorded to be down: its memory is free for others."""
        with self._lock:
            self._mib.pop(vm, None)
            self._pending_mib.pop(vm, None)

    def commit(self, vm: str, record: VMRecord | None) -> None:
        """The order for the VM has ended: from now on its record says what it is promised."""
        with self._lock:
            for kept in (self._mib, self._pending_mib, self._claims, self._pending_claims):
                kept.pop(vm, None)
            if record is not None:
                self._add(record)

    def _count(self) -> None:
        began_s = self._clock.monotonic()
        if began_s <= self._holds_until_s:
            return
        self._mib, self._claims = {}, {}
        for record in self._records.list():
            if isinstance(record, VMRecord):
                self._add(record)
        ended_s = self._clock.monotonic()
        self._holds_until_s = ended_s + ORDERS.memory_count_held * (ended_s - began_s)

    def _add(self, record: VMRecord) -> None:
        self._claims[record.vm] = _claims_of(record)
        if record.state in WANTS_VMM and not record.crash_loop:
            self._mib[record.vm] = self._need_mib(record.spec)


def _claims_of(record: VMRecord) -> Claims:
    """Its addresses, the ports of the host that it publishes, and the existing files that are its drives."""
    ports = (text for nic in record.spec.network_interfaces.values() for text in nic.publish)
    alone = (*record.addresses.values(), *(f"port {port_name(port)}" for port in ports))
    files = ((drive.source, not drive.read_only) for drive in record.spec.drives.values() if drive.source)
    return frozenset((*((name, True) for name in alone), *files))


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How an order ended, before it is dated and sent."""

    result: Result
    error: str | None = None
    note: str = ""
    observed: ObservedVM | None = None


def rejection_of(
    order: Order, found: VMRecord | UnreadableRecord | None, *, tombstone: VMRecord | None, highest_token: int
) -> Ending | None:
    """How `order` ends without anything being done for it, or None when it may be carried out."""
    action = order.action
    if order.token < highest_token:
        newer = f"a newer run (token {highest_token}) has changed project {action.project} here"
        return _stale(f"this order is from a run with token {order.token}, and {newer}")
    if isinstance(found, UnreadableRecord):
        error = f"nothing is done to {action.vm}, because its record cannot be read: {found.reason}"
        return Ending(result="failed_permanent", error=f"{error}; restore the file, or move it away to give the VM up")
    if found is None:
        return _without_record(action, tombstone)
    if found.project != action.project:
        # its owner may have come after the plan was made: the next plan says `blocked`
        return _stale(f"{action.vm} belongs to project {found.project}, not to {action.project}")
    if found.action_id == action.id:
        return None  # the same order again: it goes on where it ended
    if (action.expect.uid, action.expect.generation) != (found.uid, found.generation):
        there = f"uid {found.uid}, generation {found.generation}"
        expected = _expected(action.expect)
        return _stale(f"expected {expected}, found {there}; the next plan starts from what is there now")
    if found.state == "absent" and action.verb not in {"create", "rename", "delete"}:
        return _stale(f"{action.vm} is half deleted: a create or a delete finishes that first")
    return None


def _without_record(action: Action, tombstone: VMRecord | None) -> Ending | None:
    if action.verb == "delete":
        return Ending(result="already_done")
    if action.expect.uid is None and action.verb in {"create", "import"}:
        return None  # the generation is not compared: nobody who saw no record could know a tombstone's
    gone = f", deleted at generation {tombstone.generation}" if tombstone else ""
    return _stale(f"expected {_expected(action.expect)}, found no {action.vm}{gone}")


def _expected(expect: Expect) -> str:
    return "no such VM" if expect.uid is None else f"uid {expect.uid}, generation {expect.generation}"


def _stale(error: str) -> Ending:
    return Ending(result="stale", error=error)


def check(
    action: Action, found: VMRecord | None, ordered: VMRecord, *, driver: Driver, reservations: Reservations
) -> None:
    """Refuse what cannot work or would hurt, and reserve what the VM needs, before anything is written. `ordered` is
    the record that `found` is to become. Raises PermanentError, TemporaryError.
    """
    desired = action.desired
    if found is not None and found.policy.prevent_destroy and loses_disks(action, found):
        remedy = "lift that first, with lifecycle: {prevent_destroy: false}"
        raise PermanentError(f"it would lose its data, and is recorded as protected; {remedy}")
    if desired is None or action.verb in {"stop", "rename"}:
        return
    if desired.state == "suspended" and not driver.suspends:
        raise PermanentError(f"this host's driver, {driver.name}, cannot suspend VMs: say paused or stopped")
    if reason := driver.unsupported(desired.spec):
        raise PermanentError(f"this host cannot run it: {reason}")
    if ordered.state in WANTS_VMM and (
        reason := reservations.reserve(action.vm, driver.memory_mib(desired.spec), action.mem_limit_mib)
    ):
        raise PermanentError(f"{reason}; stop some, or give it less")
    if holder := reservations.claim(action.vm, _claims_of(ordered)):
        message = "two VMs of a host cannot have one address or port, nor a file that one of them writes"
        raise TemporaryError(f"{holder}: {message}")
    if found is None and action.verb != "import" and (facts := driver.observe(ordered)).status != "none":
        # never our own doing (the record is there first and goes last), so nobody can say whose it is
        message = f"a VMM of that name lives here without a record (pid {facts.pid}): restore that, or kill it"
        raise PermanentError(message)
    respecified = action.verb == "update" and found and needs_restart(found.spec, desired.spec)
    if respecified and found and driver.observe(found).status != "none":
        raise PermanentError("its spec changes only while it is down: restart it")


def loses_disks(action: Action, found: VMRecord) -> bool:
    """Whether the VM goes, or the root disk that it wrote to is made anew, now or when it starts."""
    if action.desired is None:
        return action.verb == "delete"
    rootfs = found.spec.boot and found.spec.boot.rootfs
    return bool(rootfs and not rootfs.read_only) and "replace" in costs(found.spec, action.desired.spec)

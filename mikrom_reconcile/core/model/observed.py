"""What is there: facts about a VMM, the phase that a host makes of them, and the views of all hosts."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from mikrom_reconcile.core.model.desired import Halt, PinnedFile, Policy, State, VMSpec
from mikrom_reconcile.times_and_sizes import VMMS

VMMStatus = Literal["none", "starting", "running", "paused", "unresponsive", "socket_lost"]
"""The VMM process, proven: none lives; it lives but has not booted its guest; Running; Paused; it does not
answer; its socket is gone."""

End = Literal["unknown", "clean", "crashed", "killed", "oom", "rebooted", "suspended"]
"""How the last VMM ended: the guest reset itself, it crashed, the VMM was killed, by the kernel for its memory limit,
the host was rebooted, or its guest's memory is on disk to go on from."""

Phase = Literal[
    "defined", "starting", "booting", "running", "unhealthy", "unresponsive", "socket_lost",
    "paused", "suspended", "stopping", "stopped", "exited", "crashed", "killed", "oom", "rebooted", "failed",
    "crash_loop", "deleting", "unreadable",
]  # fmt: skip
"""What a host sees of a VM, by `phase_of`. Absence is the absence of an ObservedVM."""


class VMMFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver can prove about one VM's VMM at this moment. `pid` is set while a VMM lives. `drift` says where the
    VMM, as it tells itself, differs from the record; what it cannot be asked does not differ. `end` speaks only when
    `status` is "none". `age_s` is how long the VMM process has lived, `console_at` the place in the console at which it
    began.
    """

    status: VMMStatus
    end: End = "unknown"
    pid: int | None = None
    age_s: float = 0.0
    drift: tuple[Drift, ...] = ()
    console_at: int = 0


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """One field in which the VMM, or what its host made for it, differs from the VM's record."""

    path: str
    recorded: int | str | bool | None
    actual: int | str | bool | None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """How often bringing a VM to one spec has failed in a row: 0 while the first try is under way. `repair` says that
    it had been as that spec says before, so that a failure tells nothing against the spec.
    """

    spec_digest: str
    count: int
    result: Literal["failed_temporary", "failed_permanent"] = "failed_temporary"
    repair: bool = False
    error: str = ""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """That a VM was brought to a spec for which it had to boot: when, and the token of the run that did it, or in which
    the rollout had begun by which it came. With `canary` the others of its fleet wait until it is promoted.
    """

    since: datetime
    token: int
    canary: bool = False


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM had before its spec, and was healthy with; `token` is that of its trial."""

    spec: VMSpec
    token: int
    addresses: dict[str, str] = {}


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What was last applied to a VM, as its host has recorded it and reports it. `state` is what was last ordered;
    `spec_digest`, `spec` and `policy` are what was last applied. `token` is the fencing token of the run that last
    changed it, `generation` counts its changes. `restarts` are the latest restarts that the host made by itself.
    `addresses` maps interfaces to their leases, `trial` is that of its spec, `halt` what was said of the rollout that
    brought it. One that is `unmanaged` was let go: nobody acts on it but by its name.
    """

    uid: str
    project: str
    fleet: str
    state: State
    spec: VMSpec
    policy: Policy
    spec_digest: str
    generation: int
    token: int
    created_at: datetime
    attempt: Attempt | None = None
    last_error: str | None = None
    restarts: tuple[datetime, ...] = ()
    addresses: dict[str, str] = {}
    trial: Trial | None = None
    halt: Halt | None = None
    unmanaged: bool = False


class ObservedVM(Applied, frozen=True, kw_only=True):
    """One VM as its host sees it: its record, and its phase now; `health` says which check does not pass, and why."""

    name: str
    host: str
    phase: Phase
    drift: tuple[Drift, ...] = ()
    pid: int | None = None
    health: str = ""


class Stray(msgspec.Struct, frozen=True, kw_only=True):
    """A VMM without a record: `vm` is what it calls itself, "" when it does not say."""

    vm: str
    pid: int


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What was started by hand: its process, and what Image and template describe it, or why it is not taken over."""

    pid: int = 0
    image: dict[str, Any] = {}
    template: dict[str, Any] = {}
    problem: str = ""


class CachedFile(msgspec.Struct, frozen=True, kw_only=True):
    """An image's file on a host. `vms` have records that name it, `used_by` names some; `last_used_at`: last wanted."""

    sha256: str
    size_bytes: int
    vms: int
    last_used_at: datetime
    used_by: tuple[str, ...] = ()


class Console(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a VM's serial console. `end` is the place where it ends, counted in bytes since the VM was made."""

    content: bytes = b""
    end: int = 0


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has in all, not what is free."""

    vcpu_count: int
    mem_size_mib: int


class ObserveQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What a run wants to know of a host. `project` limits the answer to that project's digests; None asks for every
    row of every project. `known` maps a fleet to the digest that control expects of it: rows come only for fleets that
    differ. Rows of other projects, and unreadable ones, come if some fleet differs or `others` asks for them: they may
    have taken a name. `strays` asks for VMMs without a record, too, `images` for what is cached, `socket` for what was
    started by hand with that API socket. `fetch` is to be cached first, within `fetch_s`: that is an order, and signed
    as one. `min_healthy_s` maps a fleet to how long its VMs have to be up before they count as healthy, `trials` one
    whose specs are on trial to the time in which that has to be (None: any). `before` asks for what VMs could go back
    to.
    """

    project: str | None = None
    known: dict[str, str] = {}
    others: bool = False
    strays: bool = False
    images: bool = False
    fetch: tuple[PinnedFile, ...] = ()
    fetch_s: float = 0.0
    socket: str = ""
    min_healthy_s: dict[str, float] = {}
    trials: dict[str, float | None] = {}
    before: bool = False


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Of one fleet: the `token` of the latest trial, and the time since a spec was changed or a VM got healthy."""

    token: int
    age_s: float

    def with_that_of(self, other: Progress) -> Progress:
        """The progress of a fleet that made both."""
        return Progress(token=max(self.token, other.token), age_s=min(self.age_s, other.age_s))


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """One host's answer to an ObserveQuery. `digests` maps each fleet of the project to its digest. `phases` counts the
    VMs of each fleet of the project by phase. `promised` adds up what VMs of all projects that are ordered to be up may
    take. `overhead_mib` is what each takes beyond its own memory; None: they take none of the host's memory at all.
    `used_mib` is what is taken of its memory now, by whatever. `strays` are VMMs of ours without a record, `foreign`
    those of other programs or state folders, `images` what is cached, `unfetched` why a digest could not be had,
    `described` what has the `socket`. `maturing` maps VMs that are up, and not yet for as long as the query says, to
    the seconds that are left, by this host's clock. `attempts` tells of VMs that have no record because this host could
    not make them. `unproven` maps VMs that were never healthy with their spec to the seconds that are left for it,
    `progress` tells of fleets on trial. `canaries` wait to be promoted, `halts` are those of records, `before` has what
    VMs had before their specs, where the query asks for it. `released` maps addresses of VMs of the project that are
    gone to the seconds since then, of the last day, those of VMs that were let go to less than 0. `note` is what
    whoever changes something on this host should know of it, "" for nothing.
    """

    host: str
    observed_at: datetime
    capacity: Capacity
    promised: Capacity = Capacity(vcpu_count=0, mem_size_mib=0)
    overhead_mib: int | None = 0
    used_mib: int | None = None
    note: str = ""
    highest_tokens: dict[str, int] = {}
    digests: dict[str, str] = {}
    vms: tuple[ObservedVM, ...] = ()
    phases: dict[str, dict[Phase, int]] = {}
    strays: tuple[Stray, ...] = ()
    foreign: tuple[Stray, ...] = ()
    images: tuple[CachedFile, ...] = ()
    unfetched: dict[str, str] = {}
    described: Described | None = None
    released: dict[str, float] = {}
    maturing: dict[str, float] = {}
    attempts: dict[str, Attempt] = {}
    unproven: dict[str, float] = {}
    progress: dict[str, Progress] = {}
    canaries: tuple[str, ...] = ()
    halts: dict[str, Halt] = {}
    before: dict[str, Before] = {}


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """What control knows of a host: a report, or why there is none. Unreachable never means empty."""

    host: str
    report: HostReport | None = None
    error: str = ""


class ObservedState(msgspec.Struct, frozen=True, kw_only=True):
    """The views of all hosts that a run asked, sorted by host."""

    taken_at: datetime
    hosts: tuple[HostView, ...]


class Placements(msgspec.Struct, frozen=True, kw_only=True):
    """Where a project's VMs were last known to be: VM name to host. `covers` names the hosts that have answered since
    this memory began. A VM that is not listed certainly does not exist on a covered host, unreachable or not; on an
    uncovered one it may. `fleets` has those that names such as `web-007` do not say, `addresses` what VMs lease.
    """

    vms: dict[str, str] = {}
    covers: tuple[str, ...] = ()
    addresses: dict[str, dict[str, str]] = {}
    fleets: dict[str, str] = {}

    def fleet_of(self, vm: str) -> str:
        """The fleet that a VM was last known to belong to."""
        return self.fleets.get(vm) or vm.rpartition("-")[0]


NOT_RESTARTED: dict[str, frozenset[Phase]] = {
    "always": frozenset(),
    "on-failure": frozenset({"exited"}),
    "never": frozenset({"exited", "crashed", "killed", "oom", "rebooted"}),
}
"""Phases in which each restart policy leaves a VM that should run."""

ENDED: dict[End, Phase] = {
    "clean": "exited", "crashed": "crashed", "killed": "killed", "oom": "oom", "rebooted": "rebooted",
    "suspended": "suspended", "unknown": "defined",  # never started, or its creator died before it was
}  # fmt: skip
"""What the end of a VMM means when nobody had ordered it to end."""

SATISFIES: dict[State, frozenset[Phase]] = {
    "running": frozenset({"running"}),
    "paused": frozenset({"paused"}),
    "stopped": frozenset({"stopped", "defined"}),
    "suspended": frozenset({"suspended", "stopped"}),  # what was down has nothing to keep
    "absent": frozenset(),
}
"""Phases in which a VM is already as its spec's state wants it."""

WANTS_VMM: frozenset[State] = frozenset({"running", "paused"})  # states that need a VMM
HEALTHY: frozenset[Phase] = frozenset({"running", "paused"})
"""Phases of a VM that is up: its VMM lives, can be reached and was not ordered to stop."""

DEGRADED: frozenset[Phase] = frozenset({"booting", "unhealthy"})
"""Phases of a VM whose VMM is as it should be, and whose guest does not do yet, or any more, what its checks want."""

HAS_VMM: frozenset[Phase] = DEGRADED | {"starting", "running", "paused", "unresponsive", "socket_lost", "stopping"}
"""Phases in which a VMM process lives."""


def in_words(phase: Phase) -> str:
    """What has become of a VM, as the reason of a change."""
    return "its host was rebooted" if phase == "rebooted" else f"it is {phase}"


def phase_of(facts: VMMFacts, ordered: State, *, failed: bool, crash_loop: bool) -> Phase:
    """The phase of a VM from what its driver proved and what was last ordered. `failed` says that the last attempt to
    bring it up failed and left nothing running, `crash_loop` that the host has given up bringing it back.
    """
    if ordered == "absent":
        return "deleting"
    if facts.status == "none":
        if ordered not in WANTS_VMM:
            return "suspended" if ordered == facts.end == "suspended" else "stopped"
        if crash_loop:
            return "crash_loop"
        return "failed" if failed else ENDED[facts.end]
    if ordered == "stopped":
        return "stopping"
    if facts.status == "starting":
        return "failed" if facts.age_s > VMMS.boot_s else "starting"
    return facts.status

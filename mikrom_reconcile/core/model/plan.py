"""What is to be done, and what became of it: changes, refusals, actions of a plan; requests and reports of runs."""

from collections.abc import Callable, Hashable, Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM, Share
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.observed import ObservedVM

ChangeKind = Literal[
    "create", "start", "stop", "pause", "suspend", "resume", "update", "restart", "replace", "move", "rename", "import",
    "forget", "delete", "wait", "blocked",
]  # fmt: skip
Verb = Literal[
    "create", "start", "stop", "pause", "suspend", "resume", "update", "restart", "rename", "import", "forget",
    "delete",
]  # fmt: skip
Impact = Literal["record", "live", "restart", "replace"]
"""What changing a field costs: only the record, a call to the running VMM, a restart, a new root disk."""


class FieldChange(msgspec.Struct, frozen=True, kw_only=True):
    """One field of the spec that changes. A field that appears or vanishes has None on that side."""

    path: str
    before: Any
    after: Any
    impact: Impact


class VMChange(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one VM and why. `wanted` is the kind that a `wait` or `blocked` change stands for. `rule` is the
    id of the rule in `diff` that decided, `held_by` that of the guard for which it waits.
    """

    name: str
    fleet: str
    host: str
    kind: ChangeKind
    reasons: tuple[str, ...]
    rule: str = ""
    held_by: str = ""
    wanted: ChangeKind | None = None
    fields: tuple[FieldChange, ...] = ()
    desired: DesiredVM | None = None
    observed: ObservedVM | None = None


class Expect(msgspec.Struct, frozen=True, kw_only=True):
    """What an action expects to find, or it is refused as stale. No record: `uid` is None. `generation` is that of the
    record, or 0 where none was seen (a tombstone may hold a higher one). `silent`: its VMM did not answer; a
    restart for that is not for one which does.
    """

    uid: str | None
    generation: int
    silent: bool = False


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One verb on one VM on one host. `id` is a digest of the content; `desired` is None where no spec matters. A
    rename finds the VM as `moved_from`. `deadline_s` bounds the whole action, the graceful stop inside included.
    `mem_limit_mib` is what all VMs of the host may be promised by its inventory; None: what the host has.
    """

    id: str
    verb: Verb
    host: str
    vm: str
    project: str
    desired: DesiredVM | None
    expect: Expect
    deadline_s: float
    mem_limit_mib: int | None = None
    moved_from: str = ""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A guard said no. `vm` is empty when it concerns the whole fleet; the message says numbers and way out."""

    fleet: str
    vm: str
    rule: str
    message: str


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """At most `down` of a fleet's `size` VMs that should run are taken down at a time; `pending` are still to go. With
    a rollout, `batches` are the sizes of its batches and `batch` is the number of the one that it is at.
    """

    down: int
    size: int
    pending: int = 0
    batch: int = 0
    batches: tuple[int, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one run would do. `id` is a digest of the content without the time: same input, same bytes. `unchanged`
    counts the VMs of each host that are as they should be. `unreachable` says why hosts gave no report. `peaks` tells
    of fleets how many running VMs are taken down at once. `selected` is how many VMs it is about, None for all.
    """

    id: str
    project: str
    revision: str
    taken_at: datetime
    changes: tuple[VMChange, ...]
    unchanged: dict[str, int]
    actions: tuple[Action, ...]
    refusals: tuple[Refusal, ...]
    unreachable: dict[str, str]
    warnings: tuple[str, ...]
    peaks: dict[str, Peak] = {}
    selected: int | None = None


T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def group_by(things: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The things with the same key together, all in the order in which they came."""
    groups: dict[K, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


Result = Literal["done", "already_done", "stale", "skipped", "failed_temporary", "failed_permanent"]

BEAT = "beat"  # the origin of scheduled runs


class RunOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """What a run does otherwise than fleets say, and what it leaves out. `prune_max` replaces every fleet's share;
    `confirmed` names fleets whose removals a person has confirmed. `retry` brings back what was given up. `promote`
    names fleets whose canaries are good, `abort` those whose rollout ends. `drift_mode` is that of a scheduled run:
    with `report`, every fleet counts as if its spec said so; None: a person asked, and no drift policy holds anything
    back. `limit` is a pattern of hosts, groups, fleets and VM names, `tags` and `skip_tags` are those of fleets
    (`core.planning.selection`); None and () are all. `override_freeze` does what a freeze would have wait.
    """

    prune_max: Share | None = None
    confirmed: tuple[str, ...] = ()
    retry: bool = False
    promote: tuple[str, ...] = ()
    abort: tuple[str, ...] = ()
    drift_mode: Literal["enforce", "report"] | None = None
    limit: str | None = None
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()
    override_freeze: bool = False


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """A person's word that a plan may take data away: an SSH signature of `core.planning.guards.statement_of`."""

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    signature: str


class RunRequest(RunOverrides, frozen=True, kw_only=True):
    """What a run is to do. A plan and the apply of it share one request and one `run_id`. `origin` says who asked
    ("apply by ana@build7", "beat"), for logs and for those who wait for the lease. `destroy` wants everything that the
    specs own gone. `extra_vars` win over all other variables. `assume_dead` names hosts that are off for good, by a
    person's word: if they do not answer, their VMs may be made elsewhere. `without_hosts` is for plans only: what if
    these hosts were lost? `verb` and `names` ask for one action on VMs by name instead, past the specs
    (`core.planning.one_off`). `source_problem` says why the tree is the last good one and not what its source holds
    now; "" if it is. `restores` and `held` are those of the `Revision` that a rollback makes. `approvals` are of the
    plan that is to be carried out: they signed its `losses`, which the engine fills in.
    """

    run_id: str
    origin: str
    tree: SourceTree
    destroy: bool = False
    extra_vars: dict[str, Any] = {}
    assume_dead: tuple[str, ...] = ()
    without_hosts: tuple[str, ...] = ()
    verb: Verb | None = None
    names: tuple[str, ...] = ()
    source_problem: str = ""
    restores: int = 0
    held: str = ""
    approvals: tuple[Approval, ...] = ()
    losses: tuple[str, ...] = ()
    forks: int = 32
    timeout_s: float = 600.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An action as it is sent to a host. `token` fences: a host refuses one lower than it has seen. `scheduled` says
    that nobody waits for its run: it goes after what people asked for. `losses` are the lines that `approvals` signed.
    """

    run_id: str
    token: int
    action: Action
    scheduled: bool = False
    losses: tuple[str, ...] = ()
    approvals: tuple[Approval, ...] = ()


class ActionOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one action, with what the host observed after it (None: nothing is left, or unknown). `note` is
    what has to be said of one that was done. `fleet`, `reasons` and `fields` are of its change.
    """

    action_id: str
    vm: str
    host: str
    verb: str
    result: Result
    started_at: datetime
    finished_at: datetime
    observed: ObservedVM | None = None
    error: str | None = None
    note: str = ""
    fleet: str = ""
    reasons: tuple[str, ...] = ()
    fields: tuple[FieldChange, ...] = ()


class UnfinishedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run without a report: nobody has begun it, it goes on, or it ended before it could report, with `error`. `done`
    of `planned` actions (None: not known beforehand) have ended, `failed` of them badly.
    """

    run_id: str
    origin: str
    since: datetime
    state: Literal["waiting", "running", "failed"]
    planned: int | None = None
    done: int = 0
    failed: int = 0
    error: str = ""


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """One run from plan to verification. `origin` and `source_problem` are those of its request, `author` of its specs.
    `remaining` is the plan that the last observation gives: what is still different, and None when the run ended before
    it could observe again. `late` says that the deadline passed first.
    """

    run_id: str
    plan: Plan
    outcomes: tuple[ActionOutcome, ...] = ()
    remaining: Plan | None = None
    late: bool = False
    started_at: datetime
    finished_at: datetime
    origin: str = ""
    source_problem: str = ""
    author: str = ""


SUPERVISION = "supervision"  # how the origin of what a host did by itself begins


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run as it is kept: who asked, from which commit by whom, what was done to which VM and why, how it ended.
    What a host did by itself is a run of its own. `planned` counts the kinds of changes in its plan. `failed`,
    `refused` and `unreachable` say in words what is left, `conclusion` how it ended; `exit_code` is None until it has.
    Unattended runs that came to the same are kept once: the latest of `times` `since` the first. `number` is that of
    the `Revision` that it applied, 0 for none.
    """

    run_id: str
    origin: str
    started_at: datetime
    finished_at: datetime
    project: str = ""
    revision: str = ""
    author: str = ""
    source_problem: str = ""
    planned: dict[str, int] = {}
    outcomes: tuple[ActionOutcome, ...] = ()
    failed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()
    conclusion: str = ""
    exit_code: int | None = None
    since: datetime | None = None
    times: int = 1
    number: int = 0


class Revision(RunRecord, frozen=True, kw_only=True):
    """The run that brought specs that were not applied before, as it stands since; runs of the same go on with it.
    `number` counts up in a project, `plan` is the id of its plan. `content` is the digest of what is kept to apply it
    again, in `size` bytes. `restores` is the number of the revision that a rollback brought back, `held` the digest of
    the texts that Beat leaves alone since then. `converged`: all of it was seen to be as specified.
    """

    plan: str
    content: str
    size: int
    restores: int
    held: str
    converged: bool = False

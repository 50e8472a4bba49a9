"""A run: what is asked for, orders, their outcomes, and the report."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from mikrom_reconcile.core.model.desired import Share
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import Action, FieldChange, Plan, Verb
from mikrom_reconcile.core.model.specs import SourceTree

Result = Literal["done", "already_done", "stale", "skipped", "failed_temporary", "failed_permanent"]

BEAT = "beat"
"""The origin of scheduled runs."""


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is to do. A plan and the apply of it share one request and one `run_id`.

    `origin` says who asked ("apply by ana@build7", "beat"), for logs and for those who wait for the lease.
    `destroy` wants everything that the specs own gone. `prune_max` replaces the fleets' own share for this run;
    `confirmed` names fleets whose removals a person has confirmed by typing the name. `extra_vars` win over all other
    variables; `retry` brings back what was given up; `limit`, `tags` and `skip_tags` narrow what is done
    (`core.planning.selection`). `assume_dead` names hosts that are off for good, by a person's word: if they do not
    answer, their VMs may be made elsewhere. `without_hosts` is for plans only: what if these hosts were lost? `verb`
    and `names` ask for one action on VMs by name instead, past the specs (`core.planning.one_off`). `source_problem`
    says why the tree is the last good one and not what its source holds now; "" if it is.
    """

    run_id: str
    origin: str
    tree: SourceTree
    destroy: bool = False
    prune_max: Share | None = None
    confirmed: tuple[str, ...] = ()
    retry: bool = False
    extra_vars: dict[str, Any] = {}
    limit: str | None = None
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()
    assume_dead: tuple[str, ...] = ()
    without_hosts: tuple[str, ...] = ()
    verb: Verb | None = None
    names: tuple[str, ...] = ()
    source_problem: str = ""
    forks: int = 32
    timeout_s: float = 600.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An action as it is sent to a host. `token` fences: a host refuses one lower than it has seen.

    `scheduled` says that nobody waits for its run: it goes after what people asked for.
    """

    run_id: str
    token: int
    action: Action
    scheduled: bool = False


class ActionOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one action, with what the host observed after it (None: nothing is left, or unknown).

    `fleet`, `reasons` and `fields` are those of the change that it carried out, as the run adds them.
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
    fleet: str = ""
    reasons: tuple[str, ...] = ()
    fields: tuple[FieldChange, ...] = ()


class UnfinishedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run without a report: nobody has begun it, it goes on, or it ended before it could report, with `error`.

    `done` of `planned` actions (None: not known beforehand) have ended, `failed` of them badly.
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

    `remaining` is the plan that the last observation gives: what is still different, and None when the run
    ended before it could observe again. `late` says that the deadline passed first.
    """

    run_id: str
    plan: Plan
    outcomes: tuple[ActionOutcome, ...]
    remaining: Plan | None
    late: bool
    started_at: datetime
    finished_at: datetime
    origin: str = ""
    source_problem: str = ""
    author: str = ""


SUPERVISION = "supervision"
"""How the origin of what a host did by itself begins."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run as it is kept: who asked, from which commit by whom, what was done to which VM and why, how it ended.

    What a host did by itself is a run of its own. `planned` counts the kinds of changes in its plan. `failed`,
    `refused` and `unreachable` say in words what is left, `conclusion` how it ended; `exit_code` is None until it has.
    Unattended runs that came to the same are kept once: the first began at `since`, the latest of `times` is told.
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

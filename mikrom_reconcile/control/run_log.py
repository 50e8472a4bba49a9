"""Keeps a run in the history while it goes on, action by action, and how runs are kept in any store: in rooms."""

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.control import revisions
from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.core.model import errors, plan as model
from mikrom_reconcile.core.model.encoding import UNREADABLE, digest_of, ready
from mikrom_reconcile.output.run_result import IN_PROGRESS, record_of, result_of
from mikrom_reconcile.output.text import grouped, pick
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.times_and_sizes import RUNS

_log = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class RunLog:
    """What a run has done so far, for `progress` and the store, whose faults never end it; its `with` is the run."""

    store: RunStore
    clock: Clock
    request: InitVar[model.RunRequest]
    plan: InitVar[model.Plan]
    started_at: InitVar[datetime]
    progress: Callable[[model.ActionOutcome], None]
    outcomes: list[model.ActionOutcome] = field(default_factory=list)
    _under_way: set[str] = field(default_factory=set)
    _save_at: float | None = None  # nothing was saved yet

    def __post_init__(self, request: model.RunRequest, plan: model.Plan, started_at: datetime) -> None:
        about = pick(request, "run_id", "origin", "source_problem") | {"author": request.tree.author}
        self._begun = model.RunReport(**about, plan=plan, started_at=started_at, finished_at=started_at)
        self._revision = revisions.begin(self.store, request, plan, record_of(self._begun, IN_PROGRESS))

    def sending(self, actions: Iterable[model.Action]) -> Iterator[model.Action]:
        """The actions, noted as each is sent."""
        for action in actions:
            self._under_way.add(action.vm)
            if self._save_at is None:
                self._save_at = float("-inf")
                self._save(IN_PROGRESS)
            yield action

    def heard(self, outcome: model.ActionOutcome, change: model.VMChange | None = None) -> None:
        """One outcome, and the change that it carried out."""
        if change is not None:
            outcome = replace(outcome, fleet=change.fleet, reasons=change.reasons, fields=change.fields)
        self.outcomes.append(outcome)
        self._under_way.discard(outcome.vm)
        now_s = self.clock.monotonic()
        if self._save_at is not None and now_s >= self._save_at:
            self._save(IN_PROGRESS)
            ended_s = self.clock.monotonic()
            self._save_at = ended_s + max(RUNS.save_interval_s, 10 * (ended_s - now_s))
        self.progress(outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._save(f"Interrupted by {str(error) or 'Ctrl-C'}", exit_code=130)
        elif error is not None:
            self._save("Ended early", exit_code=1, failed=(str(error) or type(error).__name__,))

    def ended(self, remaining: model.Plan, *, late: bool) -> model.RunReport:
        """The report of the run; `remaining` is the plan of the last observation."""
        outcomes = tuple(self.outcomes)
        report = replace(self._begun, outcomes=outcomes, remaining=remaining, late=late, finished_at=self.clock.now())
        self._keep(record_of(report), report)
        return report

    def _save(self, why: str, *, exit_code: int | None = None, failed: tuple[str, ...] = ()) -> None:
        why += f", {grouped(self._under_way)} under way" if self._under_way else ""
        so_far = replace(self._begun, outcomes=tuple(self.outcomes), finished_at=self.clock.now())
        self._keep(replace(record_of(so_far, why, exit_code), failed=failed))

    def _keep(self, run: model.RunRecord, report: model.RunReport | None = None) -> None:
        revision = self._revision
        try:
            self.store.save(replace(run, number=revision.number) if revision else run)
            if revision and not revision.converged:
                whole = report is not None and report.plan.selected is None and result_of(report).converged
                ended = pick(run, "finished_at", "conclusion", "exit_code")
                revisions.keep(self.store, replace(revision, **ended, converged=whole))
        except errors.MikromError as error:
            _log.warning("the history lacks what was done last: %s", error, extra={"run": run.run_id})


ROOM = {"asked": 500, "unattended": 500, "silent": 100, "going": 100}
"""How many runs are kept: that changed something and a person or a pipeline asked for, that changed something
unattended, that changed nothing, and that have not ended."""


def room_of(run: model.RunRecord) -> str:
    """The room that it is kept in."""
    if run.origin.startswith(model.SUPERVISION):
        return f"host:{run.origin.rpartition(' ')[2]}"
    if run.exit_code is None:
        return "going"
    if not any(outcome.result == "done" for outcome in run.outcomes):
        return "silent"
    return "unattended" if run.origin == model.BEAT else "asked"


def speaks_for_itself(room: str, run: model.RunRecord) -> bool:
    """Whether it may be in this room: a compromised host can lie only about itself."""
    host = room.removeprefix("host:")
    return room in ROOM or (room_of(run) == room and all(outcome.host == host for outcome in run.outcomes))


def name_of(run: model.RunRecord) -> str:
    """Its name in its room, which unattended runs that came to the same share; the others have their own."""
    if run.exit_code is None or not run.origin.startswith((model.BEAT, model.SUPERVISION)):
        return run.run_id
    told = ("vm", "host", "verb", "result", "error", "reasons", "fields")
    outcomes = [[getattr(outcome, name) for name in told] for outcome in run.outcomes]
    left = (run.failed, run.refused, run.unreachable, run.source_problem, run.conclusion.startswith(IN_PROGRESS))
    return digest_of(msgspec.to_builtins((run.origin, run.project, run.revision, outcomes, left)))


def packed(run: model.RunRecord, before: bytes | None) -> bytes:
    """A run as it is kept, with how often there was one like it, the last of which was kept `before`. It is compressed:
    many outcomes are nearly the same.
    """
    known = unpacked(run.run_id, before, run.finished_at.timestamp()) if before else run
    if known.run_id != run.run_id:
        run = replace(run, since=known.since or known.started_at, times=known.times + 1)
    return zlib.compress(msgspec.json.encode(run), 1)


def unpacked(name: str, content: Any, at: float) -> model.RunRecord:
    """The run that was kept; of one that another release wrote in another shape no more than that."""
    try:
        whole = zlib.decompressobj().decompress(content, RUNS.record_bytes)
        return msgspec.json.decode(whole, type=ready(model.RunRecord))
    except (*UNREADABLE, zlib.error):
        when, why = datetime.fromtimestamp(at, UTC), "cannot be shown: another release wrote it"
        return model.RunRecord(run_id=name, origin="unknown", started_at=when, finished_at=when, conclusion=why)

"""Keeps a run in the history while it goes on, action by action, so that none is missing however it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Self

from msgspec.structs import replace

from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.plan import Action, Plan, VMChange
from mikrom_reconcile.core.model.run import ActionOutcome, RunRecord, RunReport, RunRequest
from mikrom_reconcile.output.run_result import IN_PROGRESS, record_of
from mikrom_reconcile.output.text import grouped
from mikrom_reconcile.system.clock import Clock
from mikrom_reconcile.times_and_sizes import RUNS

_log = logging.getLogger(__name__)


class RunLog:
    """What a run has done so far, reported to `progress` and to the store. Its `with` block is the run.

    A store that cannot be written does not end the run.
    """

    def __init__(
        self,
        store: RunStore,
        clock: Clock,
        request: RunRequest,
        plan: Plan,
        started_at: datetime,
        progress: Callable[[ActionOutcome], None],
    ) -> None:
        self.outcomes: list[ActionOutcome] = []
        self._store = store
        self._clock = clock
        self._begun = RunReport(
            run_id=request.run_id,
            plan=plan,
            outcomes=(),
            remaining=None,
            late=False,
            started_at=started_at,
            finished_at=started_at,
            origin=request.origin,
            source_problem=request.source_problem,
            author=request.tree.author,
        )
        self._progress = progress
        self._under_way: set[str] = set()
        self._save_at: float | None = None  # nothing was saved yet

    def sending(self, actions: Iterable[Action]) -> Iterator[Action]:
        """The actions, noted as each is sent."""
        for action in actions:
            self._under_way.add(action.vm)
            if self._save_at is None:
                self._save_at = float("-inf")
                self._save(IN_PROGRESS)
            yield action

    def heard(self, outcome: ActionOutcome, change: VMChange | None = None) -> None:
        """One outcome, and the change that it carried out."""
        if change is not None:
            outcome = replace(outcome, fleet=change.fleet, reasons=change.reasons, fields=change.fields)
        self.outcomes.append(outcome)
        self._under_way.discard(outcome.vm)
        now_s = self._clock.monotonic()
        if self._save_at is not None and now_s >= self._save_at:
            self._save(IN_PROGRESS)
            ended_s = self._clock.monotonic()
            self._save_at = ended_s + max(RUNS.save_interval_s, 10 * (ended_s - now_s))
        self._progress(outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._save(f"Interrupted by {str(error) or 'Ctrl-C'}", exit_code=130)
        elif error is not None:
            self._save("Ended early", exit_code=1, failed=(str(error) or type(error).__name__,))

    def ended(self, remaining: Plan, *, late: bool) -> RunReport:
        """The report of the run; `remaining` is the plan of the last observation."""
        outcomes = tuple(self.outcomes)
        report = replace(self._begun, outcomes=outcomes, remaining=remaining, late=late, finished_at=self._clock.now())
        self._keep(record_of(report))
        return report

    def _save(self, why: str, *, exit_code: int | None = None, failed: tuple[str, ...] = ()) -> None:
        why += f", {grouped(self._under_way)} under way" if self._under_way else ""
        so_far = replace(self._begun, outcomes=tuple(self.outcomes), finished_at=self._clock.now())
        self._keep(replace(record_of(so_far, why, exit_code), failed=failed))

    def _keep(self, run: RunRecord) -> None:
        try:
            self._store.save(run)
        except MikromError as error:
            _log.warning("the history lacks what was done last: %s", error, extra={"run": run.run_id})

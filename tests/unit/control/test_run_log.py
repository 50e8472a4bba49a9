"""A run as it is kept while it goes on: what is saved when, and that history never costs a run."""

from __future__ import annotations

import logging
from datetime import datetime

import pytest

from mikrom_reconcile.control.run_log import RunLog
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.errors import MikromError, SetupError
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.plan import RunRecord, RunRequest
from tests.samples import MEMORY, NOW, change, outcome, plan

NAMES = ("a", "b", "c")
PLAN = plan(*(change(name) for name in NAMES))
REQUEST = RunRequest(run_id="r", origin="apply by ana", tree=SourceTree(revision="4f1c", files=(), author="Ana <a@x>"))


class Keeping:
    """A store that keeps every word, at a clock that stands still; or one that is lost."""

    def __init__(self, error: MikromError | None = None) -> None:
        self.saved: list[RunRecord] = []
        self.now_s = 0.0
        self._error = error

    def save(self, run: RunRecord) -> None:
        if self._error:
            raise self._error
        self.saved.append(run)

    def lease(self, scope: str, *, holder: str, ttl_s: float, at_least: int) -> None:
        raise AssertionError

    def placements(self, project: str) -> Placements:
        raise AssertionError

    def remember(self, project: str, placements: Placements) -> None:
        raise AssertionError

    def runs(self, limit: int) -> tuple[RunRecord, ...]:
        raise AssertionError

    def put(self, shelf: str, name: str, content: bytes | None) -> None:
        pass

    def shelf(self, shelf: str) -> list[bytes]:
        return []

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        raise AssertionError


def log_in(store: Keeping) -> RunLog:
    return RunLog(store, store, REQUEST, PLAN, NOW, lambda _: None)  # type: ignore[arg-type]


def test_a_run_is_kept_before_its_first_order_is_sent_and_deeds_as_they_end_but_not_a_thousand_times() -> None:
    store = Keeping()
    with log_in(store) as log:
        sending = log.sending(PLAN.actions)
        next(sending)
        assert store.saved[-1].conclusion == "In progress, a under way: nothing was done."
        next(sending)
        log.heard(outcome("a"), change("a", "restart", "spec changed", fields=(MEMORY,)))
        assert store.saved[-1].conclusion == "In progress, b under way: 1 created."
        (deed,) = store.saved[-1].outcomes
        assert (deed.fleet, deed.reasons, deed.fields) == ("web", ("spec changed",), (MEMORY,))
        log.heard(outcome("b"))
        deeds = [len(store.saved[-1].outcomes)]  # the second ends in the same moment
        store.now_s = 1.0
        log.heard(outcome("c"))
        assert [*deeds, len(store.saved[-1].outcomes)] == [1, 3]
    log.ended(plan(), late=False)
    last = store.saved[-1]
    assert (last.exit_code, last.author, last.revision) == (0, "Ana <a@x>", "3f2a1c9d8e7b")


@pytest.mark.parametrize(
    ("error", "conclusion", "exit_code", "failed"),
    [
        (KeyboardInterrupt(), "Interrupted by Ctrl-C, b under way: 1 created.", 130, ()),
        (KeyboardInterrupt("SIGHUP"), "Interrupted by SIGHUP, b under way: 1 created.", 130, ()),
        (MikromError("the caller has gone"), "Ended early, b under way: 1 created.", 1, ("the caller has gone",)),
        (ValueError(), "Ended early, b under way: 1 created.", 1, ("ValueError",)),
    ],
)
def test_however_a_run_ends_its_deeds_and_what_was_under_way_are_kept(
    error: BaseException, conclusion: str, exit_code: int, failed: tuple[str, ...]
) -> None:
    store = Keeping()

    def run() -> None:
        with log_in(store) as log:
            sending = log.sending(PLAN.actions)
            next(sending)
            next(sending)
            log.heard(outcome("a"))
            raise error

    with pytest.raises(type(error)):
        run()
    last = store.saved[-1]
    assert (last.conclusion, last.exit_code, last.failed) == (conclusion, exit_code, failed)
    assert [deed.vm for deed in last.outcomes] == ["a"]


def test_a_store_that_is_lost_costs_no_run(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), log_in(Keeping(SetupError("the store was lost"))) as log:
        assert len(list(log.sending(PLAN.actions))) == 3
        log.heard(outcome("a"))
    assert log.ended(plan(), late=False).outcomes == (outcome("a"),)
    assert "the store was lost" in caplog.text

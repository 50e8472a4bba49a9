"""Plan, ask, execute: what a person is asked, what they may answer, and what is then done."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import cast

import pytest

from mikrom_reconcile.cli.run_flow import run_flow
from mikrom_reconcile.control.ports import Hosts, RunStore
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.errors import MikromError, UsageError
from mikrom_reconcile.core.model.plan import ActionOutcome, Plan, RunReport, RunRequest, UnfinishedRun
from tests.samples import change, outcome, plan, refusal, report

EMPTY = plan(unchanged={"localhost": 1})
CREATE = plan(change("web-000"))
OVER = plan(
    change("db-000", "blocked", "refused", fleet="db", wanted="delete"), refusals=(refusal("db", "1 of 1 would go"),)
)
REMOVE = plan(change("db-000", "delete", "not in the specs", fleet="db"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class FakeEngine:
    """Plans what it was told to plan; OVER becomes REMOVE once a person has confirmed."""

    def __init__(self, planned: Plan) -> None:
        self.hosts = cast("Hosts", None)
        self.store = cast("RunStore", None)
        self.planned = planned
        self.handed_over: Plan | None = None
        self.applied: list[tuple[RunRequest, Plan | None]] = []

    def source(self) -> None:
        return None

    def unfinished(self) -> tuple[UnfinishedRun, ...]:
        return ()

    def accept(self, commit: str) -> str:
        raise NotImplementedError

    def hand_over(self, request: RunRequest, plan: Plan) -> None:
        self.handed_over = plan

    def plan(self, request: RunRequest) -> Plan:
        return REMOVE if request.confirmed else self.planned

    def apply(self, request: RunRequest, plan: Plan | None, *, progress: Callable[[ActionOutcome], None]) -> RunReport:
        self.applied.append((request, plan))
        approved = plan or self.planned
        outcomes = [outcome(action.vm) for action in approved.actions]
        for told in outcomes:
            progress(told)
        return report(approved, *outcomes, remaining=EMPTY)


def request(*, destroy: bool = False) -> RunRequest:
    return RunRequest(run_id="7f3c", origin="test", tree=SourceTree(revision="r", files=()), destroy=destroy)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Sits a person with these answers before the terminal; what was asked is in what comes back."""

    def sit(*answers: str) -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in answers)))
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    monkeypatch.setenv("NO_COLOR", "1")
    return sit


def test_without_a_terminal_and_without_yes_it_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    engine = FakeEngine(CREATE)
    with pytest.raises(UsageError, match="--yes"):
        run_flow(engine, request(), yes=False, form="text")
    assert engine.applied == []
    assert run_flow(engine, request(), yes=True, form="json") == 0


@pytest.mark.parametrize("word", ["y", "yes", "YES"])
def test_yes_at_the_prompt_executes_the_plan_that_was_shown(word: str, answer: Callable[..., Terminal]) -> None:
    answer(word)
    engine = FakeEngine(CREATE)
    assert run_flow(engine, request(), yes=False, form="text") == 0
    assert engine.applied == [(request(), CREATE)]


@pytest.mark.parametrize("word", ["n", "", "no", "apply", "yess"])
def test_anything_else_at_the_prompt_does_nothing(word: str, answer: Callable[..., Terminal]) -> None:
    answer(word)
    engine = FakeEngine(CREATE)
    with pytest.raises(MikromError, match=r"Nothing was done\."):
        run_flow(engine, request(), yes=False, form="text")
    assert engine.applied == []


def test_yes_on_the_command_line_asks_nothing(answer: Callable[..., Terminal]) -> None:
    screen = answer()
    engine = FakeEngine(CREATE)
    assert run_flow(engine, request(), yes=True, form="text") == 0
    assert "?" not in screen.getvalue()


def test_a_plan_without_actions_asks_nothing_and_is_still_verified(answer: Callable[..., Terminal]) -> None:
    screen = answer()
    engine = FakeEngine(EMPTY)
    assert run_flow(engine, request(), yes=False, form="text") == 0
    assert len(engine.applied) == 1
    assert "?" not in screen.getvalue()


def test_removals_over_the_share_want_the_fleets_name_typed_and_are_planned_anew(
    answer: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    screen = answer("db", "y")
    engine = FakeEngine(OVER)
    assert run_flow(engine, request(), yes=False, form="text") == 0
    assert [(made.confirmed, planned) for made, planned in engine.applied] == [(("db",), REMOVE)]
    assert "Fleet db: type its name" in screen.getvalue()
    assert capsys.readouterr().out.count("Project demo") == 2


def test_another_word_than_the_fleets_name_leaves_its_removals_refused(answer: Callable[..., Terminal]) -> None:
    answer("yes")
    engine = FakeEngine(OVER)
    run_flow(engine, request(), yes=False, form="text")
    assert [(made.confirmed, planned) for made, planned in engine.applied] == [((), OVER)]


def test_yes_on_the_command_line_never_confirms_removals_over_the_share(answer: Callable[..., Terminal]) -> None:
    answer()
    engine = FakeEngine(OVER)
    run_flow(engine, request(), yes=True, form="text")
    assert engine.applied[0][0].confirmed == ()


def test_destroy_wants_the_name_of_every_fleet_typed(answer: Callable[..., Terminal]) -> None:
    both = plan(change("db-000", "delete", "x", fleet="db"), change("web-000", "delete", "x"))
    answer("db", "web")
    engine = FakeEngine(both)
    assert run_flow(engine, request(destroy=True), yes=False, form="text") == 0
    assert len(engine.applied) == 1


@pytest.mark.parametrize("answers", [("db", "no"), ("web",), ("y", "y"), ()])
def test_destroy_does_nothing_when_one_name_is_wrong(answers: tuple[str, ...], answer: Callable[..., Terminal]) -> None:
    both = plan(change("db-000", "delete", "x", fleet="db"), change("web-000", "delete", "x"))
    answer(*answers)
    engine = FakeEngine(both)
    with pytest.raises(MikromError, match=r"Nothing was done\."):
        run_flow(engine, request(destroy=True), yes=False, form="text")
    assert engine.applied == []


def test_json_has_stdout_to_itself_and_the_plan_is_shown_to_the_person_who_is_asked(
    answer: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    screen = answer("y")
    assert run_flow(FakeEngine(CREATE), request(), yes=False, form="json") == 0
    assert json.loads(capsys.readouterr().out)["converged"] is True
    assert "Plan: 1 to create" in screen.getvalue()

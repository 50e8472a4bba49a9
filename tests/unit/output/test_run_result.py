"""The exit codes of CLI.md, row by row: what a run leaves undone decides, and whether anything failed on the way."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.plan import BEAT, Plan, RunReport
from mikrom_reconcile.output.run_result import conclusion, plan_exit_code, result_of
from tests.samples import change, observed, outcome, plan, refusal, report

DARK = {"hv02": "gave no answer"}
CREATE = plan(change("a"))
BLOCKED = change("a", "blocked", "the removals of this fleet were refused", wanted="delete")
LOST = change("b", "blocked", "its host hv02 could not be read", host="hv02")
EMPTY = plan(unchanged={"localhost": 1})


@pytest.mark.parametrize(
    ("planned", "plain", "detailed"),
    [
        pytest.param(EMPTY, 0, 0, id="nothing to change"),
        pytest.param(CREATE, 0, 2, id="changes are pending"),
        pytest.param(plan(change("a", "wait")), 0, 2, id="a waiting change is pending too"),
        pytest.param(plan(LOST, unreachable=DARK), 4, 4, id="a host could not be read"),
        pytest.param(plan(change("a"), LOST, unreachable=DARK), 4, 6, id="changes, and a host could not be read"),
        pytest.param(plan(BLOCKED, refusals=(refusal("web", "no"),)), 8, 8, id="a guard refused"),
        pytest.param(plan(BLOCKED), 8, 8, id="blocked without a refusal's words"),
        pytest.param(plan(change("c"), BLOCKED, LOST, unreachable=DARK), 12, 14, id="all of it"),
    ],
)
def test_exit_code_of_a_plan(planned: Plan, plain: int, detailed: int) -> None:
    assert (plan_exit_code(planned, detailed=False), plan_exit_code(planned, detailed=True)) == (plain, detailed)


ROWS = [
    pytest.param(report(CREATE, outcome("a"), remaining=EMPTY), 0, id="everything was done and seen"),
    pytest.param(report(EMPTY, remaining=EMPTY), 0, id="there was nothing to do"),
    pytest.param(
        report(CREATE, outcome("a", "failed_permanent", error="bad kernel"), remaining=CREATE), 2, id="a VM failed"
    ),
    pytest.param(
        report(CREATE, outcome("a", "failed_temporary"), remaining=EMPTY), 2, id="it failed, and is as it should be"
    ),
    pytest.param(
        report(CREATE, outcome("a"), remaining=plan(change("a", "start", "it is crashed"))), 2, id="it fell over again"
    ),
    pytest.param(report(CREATE, remaining=CREATE), 2, id="it was not attempted, in time and unhindered"),
    pytest.param(report(CREATE, remaining=plan(LOST, unreachable=DARK)), 4, id="a host went dark"),
    pytest.param(
        report(CREATE, outcome("b", "failed_temporary", host="hv02"), remaining=plan(LOST, unreachable=DARK)),
        4,
        id="what failed is unknown now",
    ),
    pytest.param(report(plan(BLOCKED), remaining=plan(BLOCKED)), 8, id="a guard refused"),
    pytest.param(report(CREATE, outcome("a", "stale"), remaining=CREATE), 8, id="the world had moved"),
    pytest.param(report(EMPTY, remaining=CREATE), 8, id="a VM needs what nobody has approved"),
    pytest.param(report(CREATE, remaining=CREATE, late=True), 16, id="the deadline passed first"),
    pytest.param(report(CREATE, outcome("a", "skipped"), remaining=CREATE, late=True), 16, id="skipped, being late"),
    pytest.param(report(CREATE, outcome("a", "skipped"), remaining=CREATE), 2, id="skipped for another reason"),
    pytest.param(
        report(CREATE, outcome("a", "failed_temporary"), remaining=CREATE, late=True), 18, id="failed, and late"
    ),
    pytest.param(
        report(
            plan(change("a"), BLOCKED),
            outcome("a", "failed_permanent"),
            remaining=plan(change("a"), change("c", "blocked"), LOST, unreachable=DARK),
            late=True,
        ),
        30,
        id="all of it",
    ),
    pytest.param(report(CREATE, outcome("a"), remaining=None), 2, id="done, but not looked at again"),
    pytest.param(report(CREATE, remaining=None), 2, id="not done, and not looked at again"),
    pytest.param(report(CREATE, outcome("a", "failed_permanent"), remaining=None), 2, id="failed, not looked at"),
]


WAITS = plan(change("a", "wait", "batch 1 of 2 is not healthy yet", wanted="restart"))
UNWELL = plan(change("a", "wait", "it is unhealthy", observed=observed("a", phase="unhealthy")))


@pytest.mark.parametrize(
    ("ended", "scheduled", "by_hand"),
    [
        pytest.param(report(WAITS, remaining=WAITS), 0, 8, id="it waits for the next batch"),
        pytest.param(report(CREATE, outcome("a"), remaining=WAITS), 0, 8, id="it was made, and boots"),
        pytest.param(report(EMPTY, remaining=WAITS), 0, 8, id="it waits since after the plan was made"),
        pytest.param(report(WAITS, outcome("a", "failed_temporary"), remaining=WAITS), 2, 2, id="it failed before"),
        pytest.param(report(WAITS, remaining=WAITS, late=True), 16, 16, id="the deadline passed first"),
        pytest.param(report(UNWELL, remaining=UNWELL), 2, 2, id="no time makes it well"),
    ],
)
def test_waiting_is_no_failure_and_no_convergence_either(ended: RunReport, scheduled: int, by_hand: int) -> None:
    for origin, code in ((BEAT, scheduled), ("apply by ana", by_hand)):
        result = result_of(replace(ended, origin=origin))
        assert (result.exit_code, result.converged) == (code, False)


def test_a_scheduled_run_whose_vms_wait_says_that_it_is_in_progress() -> None:
    ended = replace(report(WAITS, outcome("b", verb="restart"), remaining=WAITS), origin=BEAT)
    assert conclusion(ended, result_of(ended)) == "In progress after 2.0 s: 1 restarted; 1 VM waiting."


@pytest.mark.parametrize(("ended", "code"), ROWS)
def test_exit_code_of_a_run(ended: RunReport, code: int) -> None:
    assert result_of(ended).exit_code == code


def test_every_vm_that_is_left_has_a_reason() -> None:
    left = plan(change("a"), change("b", "start", "it is crashed"), change("c", "blocked", "taken"), change("d"))
    ended = report(
        plan(change("a"), change("b")),
        outcome("a", "failed_permanent", error="no memory"),
        outcome("b"),
        remaining=left,
    )
    result = result_of(ended)
    assert result.failed == {
        ("a", "localhost"): "create: no memory",
        ("b", "localhost"): "create was done, and yet it needs start: it is crashed",
    }
    assert result.refused == {
        ("c", "localhost"): "taken",
        ("d", "localhost"): "needs create since after the plan was made (does not exist); run again",
    }


def test_the_last_outcome_of_a_vm_counts() -> None:
    ended = report(CREATE, outcome("a", "failed_temporary", error="busy"), outcome("a", "stale", error="moved"),
                   remaining=CREATE)  # fmt: skip
    assert result_of(ended).refused == {("a", "localhost"): "moved"}

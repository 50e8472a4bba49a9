from __future__ import annotations

from textwrap import dedent

import pytest

from mikrom_reconcile.core.model.plan import ActionOutcome
from mikrom_reconcile.output.run_result import outcome_line, run_text
from mikrom_reconcile.output.text import PLAIN, Style
from tests.samples import change, outcome, plan, refusal, report


def test_a_converged_run_has_a_recap_per_host_and_one_line_that_says_so() -> None:
    planned = plan(change("a", host="hv01"), change("b", "delete", "x", host="hv02"))
    after = plan(unchanged={"hv01": 4, "hv02": 3})
    done = report(planned, outcome("a", host="hv01"), outcome("b", host="hv02", verb="delete"), remaining=after)
    assert run_text(done, PLAIN) == dedent("""\
        hv01   ok=4   changed=1   failed=0   unreachable=0   refused=0
        hv02   ok=3   changed=1   failed=0   unreachable=0   refused=0

        Converged in 2.0 s: 1 created, 1 deleted; all is as specified.
        """)


def test_what_is_left_is_told_with_reasons_before_the_recap() -> None:
    planned = plan(change("web-000"), change("web-001"), change("web-002"))
    left = plan(
        change("web-000"),
        change("web-001"),
        change("db-000", "blocked", "not in the specs", fleet="db"),
        change("web-009", "blocked", "the name belongs to project x"),
        change("far-000", "blocked", "dark", host="hv02"),
        unchanged={"localhost": 1},
        refusals=(refusal("db", "1 of 1 VMs would go; --prune-max 100%"),),
        unreachable={"hv02": "gave no answer"},
    )
    failed = (outcome(f"web-00{n}", "failed_permanent", error="bad kernel") for n in (0, 1))
    ended = report(planned, *failed, outcome("web-002"), remaining=left, late=True)
    assert run_text(ended, PLAIN) == dedent("""\
        Failed:
          ! web-[000-001] on localhost: create: bad kernel

        Refused:
          ! fleet db: 1 of 1 VMs would go; --prune-max 100% [prune]
          ! web-009 on localhost: the name belongs to project x

        Could not be read:
          ! hv02: gave no answer; its VMs are left as they are

        hv02        ok=0   changed=0   failed=0   unreachable=1   refused=0
        localhost   ok=1   changed=1   failed=2   unreachable=0   refused=2

        Not converged after 2.0 s: 1 created; 2 VMs failed, 2 VMs refused, 1 host could not be read, the deadline \
passed first.
        """)


def test_a_run_with_nothing_to_do_says_so() -> None:
    empty = plan(unchanged={"localhost": 2})
    assert "Converged in 2.0 s: nothing was done; all is as specified." in run_text(
        report(empty, remaining=empty), PLAIN
    )


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (outcome("a"), "created a on localhost in 12 ms"),
        (outcome("a", verb="restart"), "restarted a on localhost in 12 ms"),
        (outcome("a", "already_done"), "create was done before: a on localhost"),
        (outcome("a", "stale", error="moved\x1b[2J"), "stale: create a on localhost: moved\ufffd[2J"),
        (outcome("a", "skipped", error="late"), "skipped: create a on localhost: late"),
        (outcome("a", "failed_temporary", error="busy\nhost"), "failed: create a on localhost: busy host"),
        (outcome("a\x07", "failed_permanent"), "failed: create a\ufffd on localhost: "),
    ],
)
def test_each_outcome_is_one_line_that_cannot_drive_the_terminal(told: ActionOutcome, line: str) -> None:
    assert outcome_line(told, PLAIN) == line


def test_counts_that_matter_have_a_colour() -> None:
    planned = plan(change("a"))
    text = run_text(report(planned, outcome("a", "failed_permanent"), remaining=planned), Style(colour=True))
    assert "\x1b[31mfailed=1\x1b[0m" in text
    assert "\x1b[2mchanged=0\x1b[0m" in text


def test_ten_thousand_failures_are_few_lines() -> None:
    changes = [change(f"web-{n:05d}", host=f"hv{n % 10:02d}") for n in range(10_000)]
    failed = [
        outcome(it.name, "failed_permanent", host=it.host, error=f"{it.name}: bad kernel") for it in changes[:9_000]
    ]
    others = [outcome(it.name, "failed_permanent", host=it.host, error=f"no {it.name}.img") for it in changes[9_000:]]
    text = run_text(report(plan(*changes), *failed, *others, remaining=plan(*changes)), PLAIN)
    assert "  ! web-[00000-08999] on hv[00-09]: create: bad kernel\n" in text
    assert "  … and 901 more; -o json has all\n" in text
    assert len(text.splitlines()) == 115

from __future__ import annotations

from textwrap import dedent

from mikrom_reconcile.core.model.plan import FieldChange, Plan
from mikrom_reconcile.output.plan import KINDS, LOOKS, plan_text, summary
from mikrom_reconcile.output.text import PLAIN, Style
from tests.samples import MEMORY, change, plan, refusal


def text_of(planned: Plan) -> str:
    return plan_text(planned, PLAIN)


def test_a_plan_is_grouped_by_fleet_kind_reason_and_fields_and_begins_with_what_goes() -> None:
    planned = plan(
        *(change(f"web-{index:03d}") for index in range(5)),
        *(change(f"web-{index:03d}", "restart", "spec changed", fields=(MEMORY,)) for index in (5, 6, 8)),
        change("web-009", "delete", "not in the specs"),
        change("web-010", "wait", "at most 1 at a time", wanted="restart", fields=(MEMORY,)),
        change("db-000", "blocked", "not in the specs", "refused", fleet="db", wanted="delete"),
        change("db-001", "blocked", "its host could not be read", fleet="db", host="hv02"),
        unchanged={"localhost": 12},
        refusals=(refusal("db", "3 of 3 VMs would go; --prune-max 100%"),),
        unreachable={"hv02": "gave no answer", "hv03": "gave no answer"},
        warnings=("fleet old is not in these specs",),
    )
    assert text_of(planned) == dedent("""\
        Project demo at 3f2a1c9d8e7b

          web
            - delete   web-009 on localhost: not in the specs
            ~ restart  web-[005-006,008] on localhost: spec changed
                       machine.mem_size_mib: 16 → 32 (restart)
            + create   web-[000-004] on localhost: does not exist
            · wait     web-010 on localhost (restart): at most 1 at a time
                       machine.mem_size_mib: 16 → 32 (restart)

          db
            ! blocked  db-000 on localhost (delete): not in the specs; refused
            ! blocked  db-001 on hv02: its host could not be read

        Refused:
          ! fleet db: 3 of 3 VMs would go; --prune-max 100% [prune]

        Could not be read:
          ! hv[02-03]: gave no answer; its VMs are left as they are

        Warnings:
          ! fleet old is not in these specs

        Plan: 5 to create, 3 to restart, 1 to delete, 1 waiting, 2 blocked; 12 unchanged; 2 hosts could not be read.
        """)


def test_a_plan_without_changes_says_so() -> None:
    assert summary(plan(unchanged={"hv01": 2, "hv02": 1})) == "Nothing to change: 3 VMs as specified."
    assert summary(plan(unchanged={"hv01": 1}, unreachable={"hv02": "x"})) == (
        "Nothing to change: 1 VM as specified; 1 host could not be read."
    )


def test_vms_on_several_hosts_stand_in_one_entry_when_all_else_is_equal() -> None:
    planned = plan(change("web-000", host="hv01"), change("web-001", host="hv02"))
    assert "+ create   web-[000-001] on hv[01-02]: does not exist" in text_of(planned)


def test_the_order_of_the_changes_does_not_matter() -> None:
    changes = [change("b", "delete", "x"), change("a"), change("c", fleet="db"), change("a2", "stop", "y")]
    assert text_of(plan(*changes)) == text_of(plan(*reversed(changes)))


def test_refusals_with_the_same_words_are_told_once_for_all_their_vms() -> None:
    refusals = tuple(refusal("web", "the name is taken", vm=f"web-00{n}", rule="name-conflict") for n in (0, 1))
    assert "  ! web-[000-001]: the name is taken [name-conflict]\n" in text_of(plan(refusals=refusals))


def test_values_are_shown_as_json_and_a_missing_one_as_none() -> None:
    fields = (
        FieldChange(path="boot_args", before="a b", after='say "hi"\x1b[31m', impact="restart"),
        FieldChange(path="mmds", before=None, after={"b": [1, None], "a": True}, impact="live"),
    )
    text = text_of(plan(change("web-000", "restart", "spec changed", fields=fields)))
    assert 'boot_args: "a b" → "say \\"hi\\"\\u001b[31m" (restart)' in text
    assert 'mmds: (none) → {"a": true, "b": [1, null]} (live)' in text


def test_nothing_in_a_plan_can_drive_the_terminal() -> None:
    evil = "\x1b[2J\x07\u202e\x9b31m"
    planned = plan(
        change(f"vm{evil}", "create", f"because{evil}\nPlan: fine", fleet=f"web{evil}", host=f"hv{evil}"),
        refusals=(refusal(f"web{evil}", f"no{evil}"),),
        unreachable={f"hv{evil}": f"no{evil}"},
        warnings=(f"beware{evil}",),
        project=f"demo{evil}",
        revision=f"r{evil}",
    )
    text = text_of(planned)
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\x9b"}
    assert "because" in text
    assert "\nPlan: fine" not in text


def test_every_kind_of_change_has_a_sign_and_a_colour() -> None:
    assert set(LOOKS) == set(KINDS)
    for kind in KINDS:
        assert f" {kind}" in text_of(plan(change("a", kind)))


def test_colour_is_added_and_nothing_else_changes() -> None:
    planned = plan(change("web-000"), change("web-001", "delete", "x", fields=(MEMORY,)), warnings=("w",))
    coloured = plan_text(planned, Style(colour=True))
    assert "\x1b[32m+ create  \x1b[0m" in coloured
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"):
        coloured = coloured.replace(code, "")
    assert coloured == text_of(planned)


def test_a_restart_that_waits_looks_like_a_restart() -> None:
    waiting = change("web-000", "wait", "spec changed", wanted="restart")
    assert "\x1b[33m· wait    \x1b[0m web-000" in plan_text(plan(waiting), Style(colour=True))

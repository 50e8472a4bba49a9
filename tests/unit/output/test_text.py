"""The small parts: names, units, neutral text, tables, problems, lists of VMs, status, doctor."""

from __future__ import annotations

import re
from datetime import timedelta
from textwrap import dedent

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from mikrom_reconcile.core.model.documents import SourceState, SpecProblem
from mikrom_reconcile.core.model.observed import Capacity, HostReport, HostView
from mikrom_reconcile.core.model.plan import UnfinishedRun
from mikrom_reconcile.output.doctor import Check, Limit, Setting, doctor_text
from mikrom_reconcile.output.formats import problems_text
from mikrom_reconcile.output.run_result import history_text, record_of, unfinished_line
from mikrom_reconcile.output.tables import fleets_in, source_line, status_text, vms_text
from mikrom_reconcile.output.text import (
    PLAIN,
    Style,
    age,
    console_text,
    counted,
    duration,
    grouped,
    mebibytes,
    sanitize,
    table,
)
from mikrom_reconcile.times_and_sizes import SPECS
from tests.samples import NOW, observed, outcome, plan, record, report


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["web-000"], "web-000"),
        (["web-001", "web-000", "web-000"], "web-[000-001]"),
        ([f"web-{n:03d}" for n in range(200)], "web-[000-199]"),
        (["web-000", "web-002", "web-003", "web-007"], "web-[000,002-003,007]"),
        (["web-9", "web-10", "web-11"], "web-9, web-[10-11]"),
        (["db-primary", "db-replica", "web-000"], "db-primary, db-replica, web-000"),
        (["a1-x", "a2-x"], "a[1-2]-x"),
        (["r1-vm-01", "r1-vm-02", "r2-vm-01"], "r1-vm-[01-02], r2-vm-01"),
        ([], ""),
    ],
)
def test_names_are_grouped_by_their_last_number(names: list[str], text: str) -> None:
    assert grouped(names) == text


def spelled_out(text: str) -> set[str]:
    """Every name of a grouped text, by a reading of its own."""
    names = set()
    for prefix, inside, suffix in re.findall(r"([^,\[\] ]+)(?:\[([^\]]+)\]([^, ]*))?", text):
        if not inside:
            names.add(prefix)
        for item in filter(None, inside.split(",")):
            first, _, last = item.partition("-")
            for number in range(int(first), int(last or first) + 1):
                names.add(f"{prefix}{number:0{len(first)}d}{suffix}")
    return names


@given(st.sets(st.from_regex(r"[a-z]{1,2}-[0-9]{1,4}", fullmatch=True), max_size=30))
def test_every_name_can_be_read_off_a_group_and_none_is_made_up(names: set[str]) -> None:
    assert spelled_out(grouped(names)) == names


@given(st.text())
def test_neutral_text_is_one_line_of_the_same_length_without_controls(text: str) -> None:
    neutral = sanitize(text)
    assert len(neutral) == len(text)
    assert neutral.splitlines() in ([], [neutral])
    assert all(char.isprintable() or char in " \u00a0" or ord(char) > 0x9F for char in neutral)
    neutral.encode("utf-8")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"up\r\nready\n", "up\nready\n"),
        (b"\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1Hhome", "red home"),
        (b"\x1b]0;owned\x07title \x1b]8;;http://x\x1b\\link", "title link"),
        (b"\x1bPq#0;2;0\x1b\\sixel", "sixel"),
        (b"\x1b]52;c;ZXZpbA==", ""),
        (b"\x1bcreset \x1b(0lines", "reset lines"),
        (b"bell\x07 back\x08 nul\0 del\x7f tab\there", "bell back nul del tab\there"),
        ("c1 \u009b31m, rtl \u202e".encode(), "c1 31m, rtl "),
        (b"half \xc3", "half \ufffd"),
        (b"lone \x1b", "lone "),
        (b"progress 1%\rprogress 2%\n", "progress 1%progress 2%\n"),
    ],
)
def test_a_console_keeps_its_lines_and_loses_what_a_terminal_would_obey(raw: bytes, shown: str) -> None:
    assert console_text(raw) == shown


@given(st.binary())
def test_no_console_can_drive_the_terminal(raw: bytes) -> None:
    assert all(char >= " " or char in "\t\n" for char in console_text(raw))
    assert not set(console_text(raw)) & {chr(code) for code in range(0x7F, 0xA0)}


def test_quantities_are_short() -> None:
    assert [duration(s) for s in (-1, 0.0123, 1.26, 42.4, 303)] == ["0 ms", "12 ms", "1.3 s", "42 s", "5 min 3 s"]
    ages = [age(NOW - timedelta(seconds=s), NOW) for s in (-5, 4, 130, 7300, 200000)]
    assert ages == ["0s", "4s", "2min", "2h", "2d"]
    assert [mebibytes(m) for m in (16, 4095, 24064)] == ["16 MiB", "4095 MiB", "23.5 GiB"]
    assert [counted(n, "VM") for n in (0, 1, 2)] == ["0 VMs", "1 VM", "2 VMs"]


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() -> None:
    text = table(("A", "LONG", "B"), [[("x\ny", ""), ("1", "red"), ("end", "")]], PLAIN)
    assert text == "A    LONG  B\nx y  1     end\n"
    painted = table(("A", "B"), [[("1", "red"), ("2", "")]], Style(colour=True))
    assert painted.endswith("\x1b[31m1\x1b[0m  2\n")


def test_a_problem_is_told_with_its_place_line_caret_and_hint() -> None:
    problem = SpecProblem(
        path="specs/web.yml", line=5, column=13, pointer="/spec/replicas", message="must be a whole number",
        hint="write 3", excerpt="  replicas: three",
    )  # fmt: skip
    assert problems_text([problem], PLAIN) == dedent("""\
        specs/web.yml:5:13: must be a whole number
              replicas: three
                        ^
            hint: write 3
        1 problem in the specs
        """)


def test_the_caret_stays_under_the_mistake_of_a_long_line_that_was_cut() -> None:
    excerpt = "x" * (SPECS.excerpt_characters_before - 1) + "\tBAD" + "y" * 40
    problem = SpecProblem(path="a.yml", line=1, column=502, pointer="", message="m", excerpt=excerpt)
    _, line, caret, _ = problems_text([problem], PLAIN).splitlines()
    assert line[caret.index("^")] == "B"


def test_a_table_of_vms_tells_what_a_person_wants_to_know() -> None:
    vms = [
        observed("web-000"),
        observed("web-001", phase="crashed", pid=None, last_error="vcpu failed\x1b", state="running"),
    ]
    assert vms_text(vms, NOW, PLAIN) == dedent("""\
        NAME     FLEET  HOST       STATE    PHASE    IMAGE  VCPU  MEM     PID   AGE
        web-000  web    localhost  running  running  hello  1     16 MiB  4711  5h
        web-001  web    localhost  running  crashed  hello  1     16 MiB  -     5h

        Last errors:
          ! web-001 on localhost: vcpu failed\ufffd
        """)
    assert vms_text([], NOW, PLAIN) == "No VMs.\n"


def test_the_project_is_a_column_only_when_there_are_several() -> None:
    text = vms_text([observed("a"), observed("b", project="shop")], NOW, PLAIN)
    assert text.startswith("PROJECT  NAME")
    assert "\nshop     b" in text


def test_addresses_are_a_column_once_there_are_some() -> None:
    text = vms_text([observed("a", addresses={"eth0": "10.0.0.4", "eth1": "10.1.0.4"}), observed("b")], NOW, PLAIN)
    assert [line.split("  ")[-1].strip() for line in text.splitlines()] == ["ADDRESSES", "10.0.0.4, 10.1.0.4", "-"]


def test_restarts_by_the_host_are_a_column_once_there_are_some() -> None:
    text = vms_text([observed("a", restarts=(NOW, NOW)), observed("b")], NOW, PLAIN)
    assert [line.split()[-1] for line in text.splitlines()] == ["RESTARTS", "2", "0"]


def test_a_vm_whose_phase_satisfies_its_state_is_green_and_any_other_red() -> None:
    style = Style(colour=True)
    assert "\x1b[32mrunning" in vms_text([observed("a")], NOW, style)
    assert "\x1b[32mstopped" in vms_text([observed("a", state="stopped", phase="stopped")], NOW, style)
    assert "\x1b[31mrunning" in vms_text([observed("a", state="stopped", phase="running")], NOW, style)


def test_status_shows_hosts_fleets_and_the_last_run() -> None:
    seen = (observed("web-000"), observed("web-001", phase="crashed"), observed("old-000", fleet="old"))
    capacity = Capacity(vcpu_count=2, mem_size_mib=24064)
    views = (
        HostView(host="hv01", report=HostReport(host="hv01", observed_at=NOW, capacity=capacity, vms=seen)),
        HostView(host="hv02", error="gave no answer"),
    )
    last = record_of(report(plan(), outcome("web-000"), remaining=plan()))
    wanted = {("demo", "web"): (3, "halted"), ("demo", "new"): (2, "")}
    assert status_text((views, fleets_in(views, wanted), last, None), NOW + timedelta(minutes=3), PLAIN) == (
        "HOST  VCPU  MEM       VMS  RUNNING\n"
        "hv01  2     23.5 GiB  3    2\n"
        "hv02  -     -         -    -        could not be read: gave no answer\n"
        "\n"
        "PROJECT  FLEET  WANTED  VMS  RUNNING\n"
        "demo     new    2       0    0\n"
        "demo     old    -       1    1\n"
        "demo     web    3       2    1        halted\n"
        "\n"
        "Last run 2min ago, project demo at 3f2a1c9d8e7b:\n"
        "Converged in 2.0 s: 1 created; all is as specified.\n"
    )
    assert "No run so far." in status_text(((), (), None, None), NOW, PLAIN)


def test_doctor_says_how_to_mend_what_is_broken() -> None:
    checks = [Check(name="kvm", state="broken", found="no /dev/kvm", remedy="load the module")]
    lines = [Setting(variable="MIKROM_FORKS", value="32", source="default", doc="actions at once")]
    limits = [
        Limit(group="broker", name="heartbeat_interval_s", value=5.0, reason="they renew their key"),
        Limit(group="specs", name="max_values", value=200_000, reason="of one document"),
    ]
    assert doctor_text(checks, lines, limits, PLAIN) == (
        "broken  kvm  no /dev/kvm\n"
        "             → load the module\n"
        "\n"
        "1 thing to mend\n"
        "\n"
        "SETTING       VALUE\n"
        "MIKROM_FORKS  32     actions at once\n"
        "\n"
        "LIMIT                       VALUE\n"
        "broker: heartbeat interval  5 s      they renew their key\n"
        "specs: max values           200,000  of one document\n"
    )
    assert doctor_text(checks, (), (), PLAIN).endswith("1 thing to mend\n")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("kept_s", 86400, "kept  1 d"),
        ("poll_s", 0.001, "poll  1 ms"),
        ("log_bytes", 256 << 10, "log  256 KiB"),
        ("path_bytes", 107, "path  107 bytes"),
        ("max_mib", 65536, "max  64 GiB"),
        ("attempts", 3, "attempts  3"),
    ],
)
def test_limits_are_told_with_their_unit(name: str, value: float, text: str) -> None:
    line = Limit(group="a", name=name, value=value, reason="")
    words, _, told = text.partition("  ")
    row = doctor_text([Check(name="kvm", state="ok", found="")], (), [line], PLAIN).splitlines()[-1]
    assert row.split() == ["a:", *words.split(), *told.split()]


SOURCE = SourceState(
    name="git+https://there/fleet@main", revision="4f1c", number=3, digest="1:aa", since=NOW, good_at=NOW, looked_at=NOW
)
GONE = replace(SOURCE, problem="gone")
LATE = "; none has come since one was due 1h ago: are Beat and a control worker running?"


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (SOURCE, "revision 4f1c, read 5s ago."),
        (GONE, "which was good until 5s ago; revision 4f1c is used on: gone"),
        (replace(GONE, good_at=None, revision="", since=None), "main; nothing is planned: gone"),
        (replace(SOURCE, next_at=NOW - timedelta(seconds=55)), "revision 4f1c, read 5s ago."),
        (replace(SOURCE, next_at=NOW - timedelta(hours=1)), f"revision 4f1c, read 5s ago{LATE}"),
        (replace(GONE, next_at=NOW - timedelta(hours=1)), f"is used on: gone{LATE}"),
    ],
)
def test_the_source_of_scheduled_runs_is_told_in_one_line(state: SourceState, line: str) -> None:
    told = source_line(state, NOW + timedelta(seconds=5))
    assert told.startswith("Scheduled runs use git+https://there/fleet@main")
    assert told.endswith(line)
    assert line in status_text(((), (), None, state), NOW + timedelta(seconds=5), PLAIN)


def test_runs_without_a_report_come_first_and_say_how_far_they_are() -> None:
    waiting = UnfinishedRun(run_id="r1", origin="apply by ana", since=NOW, state="waiting", planned=4)
    going = UnfinishedRun(run_id="r2", origin="beat", since=NOW, state="running", done=2, failed=1)
    failed = UnfinishedRun(run_id="r3", origin="apply by ana", since=NOW, state="failed", error="no lease\x1b[2J")
    assert unfinished_line(waiting) == "Waits for a control worker: 0 of 4 done."
    assert unfinished_line(going) == "Goes on: 2 done, 1 failed."
    _, *lines = history_text([record()], NOW, PLAIN, [waiting, going, failed]).splitlines()
    assert [line.split()[3] for line in lines[:3]] == ["r1", "r2", "r3"]
    assert "0 of 4" in lines[0]
    assert "\x1b" not in lines[2]
    assert "Ended without a report: no lease" in lines[2]
    assert len(lines) == 4

"""Colours, live lines and questions, with streams that say what they are."""

from __future__ import annotations

import io
import os
import sys

import click
import pytest

from mikrom_reconcile.cli.options import SecondsType, ShareType
from mikrom_reconcile.cli.run_flow import Progress
from mikrom_reconcile.cli.terminal import ask, can_ask, is_live, style_of, warn
from tests.samples import outcome


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.fixture(autouse=True)
def a_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)


def test_colours_need_a_terminal_and_yield_to_no_color_ci_and_dumb_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert style_of(Terminal()).colour
    assert not style_of(io.StringIO()).colour
    for name, value in (("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not style_of(Terminal()).colour
    monkeypatch.setenv("NO_COLOR", "")
    assert style_of(Terminal()).colour


def test_no_color_leaves_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert is_live(Terminal())


def test_questions_need_a_terminal_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert can_ask()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not can_ask()


def test_an_answer_is_read_without_blanks_and_the_end_of_input_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdin", io.StringIO("  yes \n"))
    assert ask("Really?") == "yes"
    assert ask("Again?") == ""
    assert "Really?" in shown.getvalue()


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    warn("one\ntwo\x1b")
    assert shown.getvalue() == "warning: one two\ufffd\n"


def test_a_log_gets_one_plain_line_per_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    progress = Progress(2)
    progress.heard(outcome("a"))
    progress.heard(outcome("b", "failed_permanent", error="no"))
    progress.close()
    assert log.getvalue() == "created a on localhost in 12 ms\nfailed: create b on localhost: no\n"


def test_a_person_sees_one_moving_line_and_failures_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 20)))
    progress = Progress(2)
    for name in ("a", "b", "c"):
        progress.heard(outcome(name, "failed_permanent" if name == "b" else "done", error="no" * 40))
    progress.close()
    drawn = screen.getvalue()
    assert drawn.count("\n") == 1
    kept, moving = drawn.split("\n")
    assert "failed" in kept
    lines = moving.split("\r\x1b[K")
    assert lines[-1] == ""
    assert lines[-2].startswith("2/2, 1 failed · failed: create b")
    assert all(len(line) < 40 for line in lines)


def test_a_stderr_that_is_gone_disturbs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    progress = Progress(1)
    progress.heard(outcome("a"))
    progress.close()


@pytest.mark.parametrize(("text", "share"), [("5", 5), ("0", 0), ("20%", "20%"), ("007%", "7%"), ("100%", "100%")])
def test_a_share_is_a_number_or_a_percentage(text: str, share: int | str) -> None:
    assert ShareType().convert(text, None, None) == share


@pytest.mark.parametrize("text", ["", "%", "-1", "101%", "5.5", "half", "20 %", "٣"])
def test_anything_else_is_no_share(text: str) -> None:
    with pytest.raises(click.BadParameter):
        ShareType().convert(text, None, None)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "soon"])
def test_a_timeout_is_a_number_of_seconds_above_0(text: str) -> None:
    assert SecondsType().convert("1.5", None, None) == 1.5
    with pytest.raises(click.BadParameter):
        SecondsType().convert(text, None, None)

"""Colours, lines and questions, with streams that say what they are."""

from __future__ import annotations

import io
import sys

import click
import pytest

from mikrom_reconcile.cli.entry import ask, can_ask, style_of, warn
from mikrom_reconcile.cli.options import seconds, share
from mikrom_reconcile.cli.run_flow import show_outcome
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


def test_each_outcome_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    show_outcome(outcome("a"))
    show_outcome(outcome("b", "failed_permanent", error="no"))
    assert log.getvalue() == "created a on localhost in 12 ms\nfailed: create b on localhost: no\n"


def test_a_stderr_that_is_gone_disturbs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    show_outcome(outcome("a"))


@pytest.mark.parametrize(("text", "number"), [("5", 5), ("0", 0), ("20%", "20%"), ("007%", "7%"), ("100%", "100%")])
def test_a_share_is_a_number_or_a_percentage(text: str, number: int | str) -> None:
    assert share(text) == number


@pytest.mark.parametrize("text", ["", "%", "-1", "101%", "5.5", "half", "20 %", "٣"])
def test_anything_else_is_no_share(text: str) -> None:
    with pytest.raises(click.BadParameter):
        share(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "soon"])
def test_a_timeout_is_a_number_of_seconds_above_0(text: str) -> None:
    assert seconds("1.5") == 1.5
    with pytest.raises(click.BadParameter):
        seconds(text)

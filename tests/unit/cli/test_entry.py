"""Every way in which a command can end, and its exit code."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from mikrom_reconcile.cli import entry
from mikrom_reconcile.cli.entry import LazyCommands
from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.core.model.errors import (
    BusyError,
    MikromError,
    PastDeadlineError,
    PermanentError,
    SetupError,
    SourceError,
    SpecError,
    UsageError,
)

PROBLEM = SpecProblem(path="web.yml", line=3, column=7, pointer="/kind", message="unknown kind 'Flet'",
                      hint="did you mean Fleet?", excerpt="kind: Flet")  # fmt: skip


class Ending:
    """A command that ends as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: BaseException | None = None
        self.code: int | None = None
        command = click.Command("end", callback=self._end, params=[click.Option(["--number"], type=int)])
        monkeypatch.setattr(LazyCommands, "get_command", lambda *_: command)

    def _end(self, number: int | None) -> int | None:
        if self.error is not None:
            raise self.error
        return self.code


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Ending:
    return Ending(monkeypatch)


@pytest.mark.parametrize("code", [None, 0, 2, 4, 8, 14, 30])
def test_a_command_that_returns_a_code_ends_with_it(code: int | None, ending: Ending) -> None:
    ending.code = code
    assert entry.run(["end"]) == (code or 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MikromError("no"), 1),
        (SourceError("no such folder"), 1),
        (SetupError("no firecracker"), 1),
        (SpecError((PROBLEM,)), 1),
        (PermanentError("no", vm="a", step="trying"), 1),
        (UsageError("wrong"), 64),
        (click.UsageError("wrong"), 64),
        (click.BadParameter("wrong"), 64),
        (BusyError("held by beat"), 16),
        (PastDeadlineError("too late"), 16),
        (ValueError("a mistake of ours"), 70),
        (OSError(5, "Input/output error"), 70),
        (RecursionError("too deep"), 70),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(
    error: BaseException, code: int, ending: Ending, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ending.error = error
    assert entry.run(["end"]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err
    assert "Traceback" not in told.err


def test_wrong_options_are_a_usage_error(ending: Ending, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["end", "--nonsense"]) == 64
    assert entry.run(["end", "--number", "x"]) == 64
    assert entry.run(["end", "argument"]) == 64
    assert entry.run(["--nonsense"]) == 64
    assert "mikrom end --help" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["aply"]) == 64
    assert "did you mean apply?" in capsys.readouterr().err


def test_spec_errors_are_told_with_place_line_caret_and_hint(
    ending: Ending, capsys: pytest.CaptureFixture[str]
) -> None:
    ending.error = SpecError((PROBLEM,))
    entry.run(["end"])
    assert capsys.readouterr().err == (
        "web.yml:3:7: unknown kind 'Flet'\n"
        "    kind: Flet\n"
        "          ^\n"
        "    hint: did you mean Fleet?\n"
        "1 problem in the specs\n"
    )


def test_a_mistake_of_ours_is_kept_in_a_private_file_that_is_named(
    ending: Ending, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ending.error = ValueError("a mistake\x1b[2J of ours")
    entry.run(["end"])
    (kept,) = tmp_path.iterdir()
    told = capsys.readouterr().err
    assert "ValueError: a mistake\ufffd[2J of ours" in told
    assert str(kept) in told
    assert "Traceback (most recent call last)" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_with_debugging_on_the_traceback_is_shown(
    ending: Ending, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIKROM_DEBUG", "1")
    ending.error = ValueError("a mistake of ours")
    assert entry.run(["end"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_wrong_setting_is_a_usage_error_that_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIKROM_FORKS", "many")
    assert entry.run(["status"]) == 64
    assert "MIKROM_FORKS='many'" in capsys.readouterr().err

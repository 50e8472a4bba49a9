from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

from mikrom_reconcile import __version__
from mikrom_reconcile.__main__ import main
from mikrom_reconcile.cli.commands import COMMANDS, overview
from mikrom_reconcile.cli.entry import Commands, root, run

DOCUMENTED = {
    "init", "validate", "render", "plan", "apply", "destroy", "get", "status", "describe", "explain", "events", "logs",
    "history", "schema", "doctor", "completion", "version", "worker", "beat", "flower", "up",
    "start", "stop", "pause", "suspend", "resume", "restart", "delete", "orphans", "images", "image", "drift",
    "rollback", "promote", "abort", "accept", "approve", "adopt", "freeze", "unfreeze", "chaos", "simulate",
}  # fmt: skip


def modules_after(words: list[str]) -> set[str]:
    code = (
        f"import sys; from mikrom_reconcile.__main__ import main; main({words}); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("words", [["--help"], [], ["version"], ["--version"]])
def test_what_is_asked_most_often_imports_nothing_heavy(words: list[str]) -> None:
    heavy = {"yaml", "jsonschema", "msgspec", "celery", "redis", "kombu", "gevent", "deepdiff", "click", "typing"}
    assert not modules_after(words) & heavy


def test_a_command_imports_no_broker_and_no_greenlets_unless_it_needs_them() -> None:
    assert not modules_after(["plan", "--help"]) & {"celery", "redis", "kombu", "gevent", "jsonschema", "deepdiff"}


def test_every_documented_command_is_there() -> None:
    assert set(COMMANDS) == DOCUMENTED


@pytest.mark.parametrize("name", COMMANDS)
def test_every_row_of_the_table_is_a_command_with_help(name: str) -> None:
    module, _ = COMMANDS[name]
    command = getattr(import_module(f"mikrom_reconcile.cli.{module}"), name)
    assert isinstance(command, click.Command)
    result = CliRunner().invoke(root, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: mikrom {name}")
    assert (command.help or "").strip()


def test_the_overview_is_the_same_with_and_without_click(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == overview()
    assert CliRunner().invoke(root, ["--help"]).output == overview()
    assert all(f"\n  {name} " in overview() for name in COMMANDS)


@pytest.mark.parametrize("words", [["version"], ["--version"], ["version", "-o", "text"]])
def test_the_version_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*words, name), command
        if isinstance(command, click.Group):
            assert isinstance(command, Commands)
            yield from commands(command, (*words, name))


def values_of(option: click.Option) -> tuple[str, str]:
    """Two values that it takes."""
    if isinstance(option.type, click.Choice):
        return option.type.choices[0], option.type.choices[-1]
    return "1", "2"


REPEATABLE = {"tags", "faults", "skip_tags", "extra_vars", "assume_dead", "without_hosts", "help"}


def test_no_option_of_any_command_loses_its_first_value() -> None:
    found = [(words, each) for words, command in commands(root) for each in command.params]
    options = [(words, each) for words, each in found if isinstance(each, click.Option)]
    single = [(words, each) for words, each in options if not each.multiple and not each.is_flag]
    assert {each.name for _, each in options if each.multiple} <= REPEATABLE
    assert len(single) > 40
    for words, option in single:
        for name in option.opts:
            first, second = values_of(option)
            result = CliRunner().invoke(root, [*words, name, first, f"{option.opts[-1]}={second}"])
            assert (result.exit_code, f"{option.opts[-1]} is given twice" in result.output) == (2, True), words
    assert "--wait is given twice" in CliRunner().invoke(root, ["apply", "--wait", "--no-wait"]).output
    assert run(["plan", "--limit", "a", "--limit", "b"]) == 64


@pytest.mark.parametrize(
    "words", [["--tags", ""], ["--tags", "a,"], ["--tags", "a", "--skip-tags", " "], ["--tags", ","], ["-e", ""]]
)
def test_an_empty_word_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "apply", "destroy"):
        assert run([command, *words, *([] if command == "plan" else ["--yes"])]) == 64
        assert capsys.readouterr().err.startswith("error: -")

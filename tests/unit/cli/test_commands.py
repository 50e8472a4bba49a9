from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import click
import pytest
from click.testing import CliRunner

from mikrom_reconcile import __version__
from mikrom_reconcile.__main__ import main
from mikrom_reconcile.cli.commands import COMMANDS, overview
from mikrom_reconcile.cli.root import root

DOCUMENTED = {
    "init", "validate", "render", "plan", "apply", "destroy", "get", "status", "describe", "explain", "events", "logs",
    "history", "schema", "doctor", "completion", "version", "worker", "beat", "flower", "up",
    "start", "stop", "pause", "resume", "restart", "delete", "orphans", "images",
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
    _, module, _ = COMMANDS[name]
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

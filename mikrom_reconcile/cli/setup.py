"""`mikrom doctor`, `completion`, `version`, and the services: `up`, `worker`, `beat` and `flower`."""

import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click

from mikrom_reconcile import __version__, times_and_sizes
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.entry import COMPLETE_VARIABLE, present, root, show
from mikrom_reconcile.output.doctor import Limit, Setting, doctor_document, doctor_text
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.services import commands
from mikrom_reconcile.settings import Settings, docs, load


@click.command()
@click.option("--security", is_flag=True, help="Look for what an intruder could use instead.")
@click.option("-v", "--verbose", is_flag=True, help="List the times and sizes that are fixed, too.")
@options.output()
def doctor(*, security: bool, verbose: bool, form: str) -> int:
    """Check this machine, say how to mend what is broken, and list every setting. Exits with 1 when something is."""
    from mikrom_reconcile.doctor import machine, security as intruders

    settings = load()
    checks = list(machine.run_checks(intruders.CHECKS if security else machine.CHECKS, settings))
    lines = () if security else tuple(_settings(settings))
    rows = () if security else times_and_sizes.rows()
    fixed = [Limit(group.lower(), name, value, reason) for group, name, value, reason in rows]
    told = fixed if verbose else []
    present(form, lambda: doctor_document(checks, lines, fixed), lambda style: doctor_text(checks, lines, told, style))
    return 1 if any(check.state == "broken" for check in checks) else 0


def _settings(settings: Settings) -> Iterator[Setting]:
    meanings = docs()
    for entry in fields(Settings):
        variable = entry.metadata["variable"]
        yield Setting(
            variable=variable,
            value=_shown(getattr(settings, entry.name), secret=entry.metadata["secret"]),
            source="environment" if os.environ.get(variable) else "default",
            doc=meanings[variable],
        )


def _shown(value: object, *, secret: bool) -> str:
    """A setting's value as a person would set it, without what nobody may read over a shoulder."""
    from mikrom_reconcile.dispatch.transport.broker import without_password

    if value is None or value == ():
        return "-"
    if secret:
        return "***"
    if isinstance(value, tuple):
        return (":" if isinstance(value[0], Path) else ",").join(map(str, value))
    if isinstance(value, bool | float):
        return f"{value:g}"
    return without_password(str(value)) if "://" in str(value) else str(value)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """The script that completes commands, options and names; for bash: eval "$(mikrom completion bash)"."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, "the shells above are those that click knows"  # noqa: S101
    show(made(root, {}, "mikrom", COMPLETE_VARIABLE).source() + "\n")
    return 0


@click.command()
@options.output()
def version(form: str) -> int:
    """The version of mikrom."""
    present(form, lambda: {"version": __version__}, lambda _: f"{__version__}\n")
    return 0


@click.command()
@click.option("--no-run", is_flag=True, help="Do not apply the specs when all services are ready.")
def up(*, no_run: bool) -> int:
    """All services on this machine, with a Redis of their own, until Ctrl-C. The microVMs stay.

    When all are ready, the specs (MIKROM_SPECS, else ./specs) are applied once. Other commands on this machine find
    these services by themselves.
    """
    return commands.up(load(), run=not no_run, tell=lambda news: show(f"{sanitize(news)}\n", sys.stderr))


@click.command()
@click.option("--seed", type=int, default=1, show_default=True, help="Which faults come when.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="How many, some 20 s each.")
def chaos(*, seed: int, rounds: int) -> int:
    """Kill, silence and fill what runs real microVMs, and see that all is mended; it all runs apart from this machine.

    Exits with 1 when something was not mended.
    """
    from mikrom_reconcile.services.chaos import run_apart

    return run_apart(load(), seed, rounds)


@click.command()
@click.option("--role", type=click.Choice(["host", "control"]), help="What the worker does [MIKROM_WORKER_ROLE].")
def worker(role: str | None) -> None:
    """The Celery worker of this host (gevent), or of the control side (threads)."""
    settings = load(os.environ | ({"MIKROM_WORKER_ROLE": role} if role else {}))
    commands.become(settings.worker_role, settings)


@click.command()
def beat() -> None:
    """The clock of the scheduled runs. Two of them tick once."""
    commands.become("beat", load())


@click.command()
def flower() -> None:
    """The monitoring page, on loopback. Refuses to start without FLOWER_BASIC_AUTH."""
    commands.become("flower", load())

"""`mikrom up`, `worker`, `beat` and `flower`: this process becomes the service, or the one that watches over all."""

from __future__ import annotations

import click

from mikrom_reconcile.dispatch import services
from mikrom_reconcile.settings import load


@click.command()
@click.option("--role", type=click.Choice(["host", "control"]), help="What the worker does [MIKROM_WORKER_ROLE].")
def worker(role: str | None) -> None:
    """The Celery worker of this host (gevent), or of the control side (threads)."""
    settings = load()
    services.become("control" if (role or settings.worker_role) == "control" else "host", settings)


@click.command()
def beat() -> None:
    """The clock of the scheduled runs. Two of them tick once."""
    services.become("beat", load())


@click.command()
def flower() -> None:
    """The monitoring page, on loopback. Refuses to start without FLOWER_BASIC_AUTH."""
    services.become("flower", load())

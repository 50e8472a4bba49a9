"""Celery Beat for a supervisor: `python run_beat.py`. The same as `mikrom beat`."""

from __future__ import annotations

import os
import sys

from mikrom_reconcile import settings
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.services import commands


def main() -> None:
    """Tick until told to end."""
    try:
        loaded = settings.load()
        os.environ.update(commands.environment("beat", commands.check("beat", loaded)))
    except MikromError as error:
        sys.exit(f"run_beat.py: {error}")
    from mikrom_reconcile.celery_app import app  # noqa: PLC0415 - it reads the environment

    app.start(commands.arguments("beat", loaded))


if __name__ == "__main__":
    main()

"""A Celery worker for a supervisor: `python run_worker.py`, its role in MIKROM_WORKER_ROLE (host unless set).

The same as `mikrom worker`. On a host nothing may be imported before gevent has patched: a worker that was patched
late says "ready", takes tasks and never runs one.
"""

import os

if os.environ.get("MIKROM_WORKER_ROLE", "host") != "control":
    from gevent import monkey

    monkey.patch_all()

import sys

from mikrom_reconcile import settings
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.services import commands


def main() -> None:
    """Run the worker until it is told to end."""
    try:
        loaded = settings.load()
        role = loaded.worker_role
        os.environ.update(commands.environment(role, commands.check(role, loaded)))
    except MikromError as error:
        sys.exit(f"run_worker.py: {error}")
    from mikrom_reconcile.celery_app import app  # noqa: PLC0415 - it reads the environment

    app.worker_main(commands.arguments(role, loaded))


if __name__ == "__main__":
    main()

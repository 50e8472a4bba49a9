"""How a line of the log looks: what happened, and which task, run, VM, host and step it is of."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import current_task

FIELDS = ("celery.task_id", "run", "vm", "host", "step", "duration_s")


class FieldsFormatter(logging.Formatter):
    """Adds the fields that a record has, with the id of the task that it was logged in; the time is in UTC."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """The line, traceback included."""
        if current_task:
            record.__dict__.setdefault("celery.task_id", current_task.request.id)
        line = super().format(record)
        fields = [f"{name}={_text(record.__dict__[name])}" for name in FIELDS if record.__dict__.get(name)]
        return f"{line} [{' '.join(fields)}]" if fields else line


def set_up_log(logger: logging.Logger, **_: Any) -> None:
    """Receiver of Celery's `after_setup_logger`."""
    # what no line shows is not looked up: under gevent a name of a thread alone takes as long as the rest of a record
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for handler in logger.handlers:
        handler.setFormatter(FieldsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def _text(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text

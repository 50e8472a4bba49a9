"""What a line in the log of a worker or of Beat looks like: the message, then the fields to search by.

Whatever logs inside a task gets the task's id, so that the host side need not know that Celery exists.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import current_task

FIELDS = ("celery.task_id", "run", "vm", "host", "step", "duration_s")

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TaskId(logging.Filter):
    """Gives each record the id of the task that it was logged in."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if current_task:
            record.__dict__.setdefault("celery.task_id", current_task.request.id)
        return True


class FieldsFormatter(logging.Formatter):
    """Adds the fields that a record has; the time is in UTC, so that the logs of many machines can be put together."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """The line, traceback included."""
        line = super().format(record)
        fields = [f"{name}={_text(record.__dict__[name])}" for name in FIELDS if record.__dict__.get(name)]
        return f"{line} [{' '.join(fields)}]" if fields else line


def set_up_log(logger: logging.Logger, **_: Any) -> None:
    """Receiver of Celery's `after_setup_logger`."""
    # what no line shows is not looked up: under gevent a name of a thread alone takes as long as the rest of a record
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for handler in logger.handlers:
        handler.addFilter(TaskId())
        handler.setFormatter(FieldsFormatter(_FORMAT))


def _text(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text

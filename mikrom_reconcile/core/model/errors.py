"""Every error that mikrom raises on purpose: what happened, where, what to do next. None travels over Celery."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mikrom_reconcile.core.model.documents import SpecProblem


class MikromError(Exception):
    """Base of all errors that are answered with a message instead of a traceback."""


class SpecError(MikromError):
    """The specs are wrong; `problems` holds every mistake that was found, in file order."""

    def __init__(self, problems: tuple[SpecProblem, ...]) -> None:
        super().__init__(f"{len(problems)} problem(s) in the specs")
        self.problems = problems


class UsageError(MikromError):
    """The command line or a setting is wrong; nothing was done."""


class SetupError(MikromError):
    """This machine lacks something that was asked for; the message names it and the remedy."""


class SourceError(MikromError):
    """The source of the specs cannot be read, or holds no document: never an order to delete."""


class BusyError(MikromError):
    """Somebody else holds the lease or the lock; the message names the holder."""


class HeldError(MikromError):
    """The project is to be left alone; the message says why, and until when."""


class PastDeadlineError(MikromError):
    """The deadline passed before the work was done."""


class ActionError(MikromError):
    """An action on one VM failed. `step` is what was being done, in words that fit after "while" ("configuring the boot
    source"). `vm` is empty where it failed for all of a host. Both may be left to who knows (`host/errors.py`).
    """

    def __init__(self, message: str, *, vm: str = "", step: str = "") -> None:
        super().__init__(f"{vm + ': ' if vm else ''}{message}{f' (while {step})' if step else ''}")
        self.vm = vm
        self.step = step


class TemporaryError(ActionError):
    """Trying the same action again may help."""


class PermanentError(ActionError):
    """Trying the same action again cannot help until something is changed."""

"""Errors as values: what a control worker says when a request fails, and the same error again at the caller's.

Never a pickled exception and never a traceback: the kinds are listed, anything else is an internal error whose
traceback is in the worker's log.
"""

from __future__ import annotations

import msgspec

from mikrom_reconcile.core.model.errors import (
    BusyError,
    MikromError,
    PastDeadlineError,
    SetupError,
    SourceError,
    SpecError,
    UsageError,
)
from mikrom_reconcile.core.model.specs import SpecProblem

_KINDS: dict[str, type[MikromError]] = {
    kind.__name__: kind for kind in (BusyError, MikromError, PastDeadlineError, SetupError, SourceError, UsageError)
}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error as it travels. `problems` belongs to a SpecError."""

    kind: str
    message: str
    problems: tuple[SpecProblem, ...] = ()


def failure_of(error: Exception, *, task_id: str) -> Failure:
    """What to tell the caller about `error`."""
    if isinstance(error, SpecError):
        return Failure(kind="SpecError", message=str(error), problems=error.problems)
    if isinstance(error, MikromError):
        kind = next((base.__name__ for base in type(error).__mro__ if base.__name__ in _KINDS), "MikromError")
        return Failure(kind=kind, message=str(error))
    return Failure(
        kind="MikromError",
        message=f"internal error in the control worker ({type(error).__name__}); its log has it under task {task_id}",
    )


def error_of(failure: Failure) -> MikromError:
    """The error that the caller raises."""
    if failure.kind == "SpecError":
        return SpecError(failure.problems)
    return _KINDS.get(failure.kind, MikromError)(failure.message)

"""Whether this machine can run what it should: drivers, room, services, and what an intruder could use.

Each module has a table of checks: a name, and what looks at it and says what was found and what to do about it. They
change nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.output.doctor import Check
from mikrom_reconcile.settings import Settings

Look = Callable[[Settings], Check | Iterable[Check] | None]
"""Looks at one thing; None where there is nothing to say. Errors are `broken`, with what they say after "; " to do."""


ok = partial(Check, "", "ok")
note = partial(Check, "", "note")
broken = partial(Check, "", "broken")
"""Each is given what was found, and what to do about it. The table has the name."""


def run_checks(checks: Mapping[str, Look], settings: Settings) -> Iterator[Check]:
    """What each check of the table found, in its order; one that has a name already is a check of its own."""
    for name, look in checks.items():
        try:
            found = look(settings)
            for check in (found,) if isinstance(found, Check) else found or ():
                yield check if check.name else replace(check, name=name)
        except MikromError as error:
            problem, _, remedy = str(error).partition("; ")
            yield Check(name, "broken", problem, remedy or "fix that first, then run it again")


def nearest_of(folder: Path) -> Path:
    """The folder, or the first above it that is there and that this user can see."""
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110 - Path.exists raises


def folder_check(variable: str, folder: Path, *, strict: bool = False) -> Check:
    """Whether a folder can be used, or made; under `strict` it must belong to this user, and be closed to others."""
    remedy = f"make it writable for this user, or set {variable}"
    nearest = nearest_of(folder)
    if not nearest.is_dir():
        return broken(f"{nearest} is not a folder", remedy)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return broken(f"{nearest} is not writable", remedy)
    if nearest != folder:
        return ok(f"{folder} will be made, closed to others")
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if strict and found.st_uid != os.geteuid():
        remedy = f"chown it to uid {os.geteuid()}, or ask as its owner"
        return broken(f"{folder} belongs to uid {found.st_uid}, not to this user", remedy)
    if mode & 0o077:
        return (broken if strict else note)(f"{folder} is open to others ({mode:04o})", f"chmod 700 {folder}")
    return ok(f"{folder} ({mode:04o})")

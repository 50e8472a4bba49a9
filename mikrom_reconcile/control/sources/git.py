"""The commit that specs come from, when they lie in a git checkout.

It names a revision for people. Whatever goes wrong means "no commit": a name is not worth an error.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mikrom_reconcile.limits import SOURCES

ABBREVIATED = 12
"""Digits of a commit; what git itself would choose for a very large repository."""

DIRTY = "-dirty"

AUTHOR = "--format=%an <%ae>"
"""Whose commit it is, as `git log` and `git show` print it."""


def made_by(revision: str, author: str) -> str:
    """A revision, and whose it is where that is known."""
    return f"{revision} by {author}" if author else revision


def commit_of(paths: Sequence[Path]) -> tuple[str, str] | None:
    """The commit checked out around all of `paths` and its author; None without one.

    When they differ from it, it ends with "-dirty", and the author is nobody's to tell.
    """
    checkouts = {_checkout_of(path) for path in paths}
    git = shutil.which("git")
    if git is None or len(checkouts) != 1 or (checkout := checkouts.pop()) is None:
        return None
    # a checkout's own configuration may name a program to run here
    command = [git, "-c", "core.fsmonitor=false", "-C", str(checkout), "--no-optional-locks"]
    status = ["status", "--porcelain=v2", "--branch", "--", *(str(path.resolve()) for path in paths)]
    try:
        revision = _revision_in(_said([*command, *status]))
        if revision is None or revision.endswith(DIRTY):
            return (revision, "") if revision else None
        return revision, _said([*command, "show", "--no-patch", AUTHOR, revision])[0]
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def _said(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, timeout=SOURCES.git_status_s, check=True)
    return done.stdout.decode(errors="replace").splitlines()


def _checkout_of(path: Path) -> Path | None:
    """The nearest folder above `path` that holds a `.git`; asked first, because starting git costs more."""
    real = path.resolve()
    return next((folder for folder in (real, *real.parents) if (folder / ".git").exists()), None)


def _revision_in(lines: list[str]) -> str | None:
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if commit == "(initial)":
        return None
    dirty = any(not line.startswith("#") for line in lines)
    return commit[:ABBREVIATED] + (DIRTY if dirty else "")

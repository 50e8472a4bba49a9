"""The commit that specs come from, when they lie in a git checkout.

It names a revision for people. Whatever goes wrong means "no commit": a name is not worth an error.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 2.0
"""`git status` of a few folders takes milliseconds; a repository that needs longer goes without a commit's name."""

ABBREVIATED = 12
"""Digits of a commit; what git itself would choose for a very large repository."""


def commit_of(paths: Sequence[Path]) -> str | None:
    """The commit checked out around all of `paths`, with "-dirty" when they differ from it; None without one."""
    checkouts = {_checkout_of(path) for path in paths}
    git = shutil.which("git")
    if git is None or len(checkouts) != 1 or (checkout := checkouts.pop()) is None:
        return None
    # a checkout's own configuration may name a program to run here
    command = [git, "-c", "core.fsmonitor=false", "-C", str(checkout), "--no-optional-locks"]
    command += ["status", "--porcelain=v2", "--branch", "--", *(str(path.resolve()) for path in paths)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return _revision_in(done.stdout.splitlines())


def _checkout_of(path: Path) -> Path | None:
    """The nearest folder above `path` that holds a `.git`; asked first, because starting git costs more."""
    real = path.resolve()
    return next((folder for folder in (real, *real.parents) if (folder / ".git").exists()), None)


def _revision_in(lines: list[str]) -> str | None:
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    if commit == "(initial)":
        return None
    dirty = any(not line.startswith("#") for line in lines)
    return commit[:ABBREVIATED] + ("-dirty" if dirty else "")

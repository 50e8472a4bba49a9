"""A plan in a file, with the request that it was made from: looked at today, executed as it is tomorrow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile import __version__
from mikrom_reconcile.core.model.encoding import digest_of, ready
from mikrom_reconcile.core.model.errors import SourceError, UsageError
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.system.files import write_named

_AGAIN = "make it again with `mikrom plan --out FILE`"


Place = tuple[str, str]
"""The id of the hosts that a plan is for, and how a person calls them."""


class SavedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the file. `format_version` is the release that made it: another one plans anew.

    `digest` covers the rest, against accidents; it is no signature.
    """

    format_version: str
    digest: str
    place: Place
    request: RunRequest
    plan: Plan


def write(path: str, request: RunRequest, plan: Plan, place: Place) -> None:
    """Put the plan into a file that only this user may read: it holds the specs."""
    if request.without_hosts:
        raise UsageError("--without-host only asks what would be: such a plan cannot be saved")
    if os.path.realpath(path) in {os.path.realpath(file.path) for file in request.tree.files}:
        raise UsageError(f"--out {path}: these are the specs; name another file")
    digest = digest_of((request, plan, place))
    saved = SavedPlan(format_version=__version__, digest=digest, place=place, request=request, plan=plan)
    try:
        write_named(path, msgspec.json.encode(saved))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error


def refuse_elsewhere(saved: SavedPlan, place: Place) -> None:
    """Raises SourceError where the plan would act on other hosts than those that it was made for."""
    if saved.place[0] != place[0]:
        raise SourceError(f"this plan was made for {saved.place[1]}, and here it would act on {place[1]}; {_AGAIN}")


def find(paths: Sequence[str]) -> SavedPlan | None:
    """The plan in the file that `paths` name; None if it is anything else. Raises SourceError for a broken one."""
    if len(paths) != 1:
        return None
    try:
        if not Path(paths[0]).is_file():
            return None
        content = Path(paths[0]).read_bytes()
    except OSError as error:
        raise SourceError(f"{paths[0]}: {error.strerror}") from error
    if not content.lstrip().startswith(b"{"):
        return None
    try:
        found: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # specs may be YAML in braces
        if content.startswith(b'{"format_version":'):
            raise SourceError(f"{paths[0]}: this plan is not whole; {_AGAIN}") from None
        return None
    return None if "apiVersion" in found or "kind" in found else _checked(paths[0], content, found)


def _checked(path: str, content: bytes, found: dict[str, Any]) -> SavedPlan:
    if "format_version" not in found or "plan" not in found:
        raise SourceError(f"{path}: neither specs nor a plan that was saved with --out; {_AGAIN}")
    if found["format_version"] != __version__:
        raise SourceError(f"{path}: another release saved this plan; {_AGAIN}")
    try:
        saved = msgspec.json.decode(content, type=ready(SavedPlan))
    except msgspec.ValidationError as error:
        raise SourceError(f"{path}: this plan cannot be read: {error}; {_AGAIN}") from None
    if saved.digest != digest_of((saved.request, saved.plan, saved.place)):
        raise SourceError(f"{path}: this plan was changed after it was made; {_AGAIN}")
    return saved

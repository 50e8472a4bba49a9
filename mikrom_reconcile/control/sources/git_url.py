"""Where specs are in a git repository: `git+<url>@<ref>#<subdirectory>`, taken apart and checked.

What git would take for an option, a program to run or a path outside of the repository is refused here, before git
is started.
"""

from __future__ import annotations

import re
from typing import Self
from urllib.parse import urlsplit

import msgspec

from mikrom_reconcile.core.model.errors import UsageError

PREFIX = "git+"

PROTOCOLS = ("https", "http", "ssh", "git", "file")
"""Those that only fetch; `ext::` and its like run programs."""

_REF = re.compile(r"(?!.*(?:\.\.|//|@\{|\.lock$|/$))[A-Za-z0-9_][A-Za-z0-9_.+/-]*")
_HOST = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:\]-]*")


class GitPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A repository, what to take of it ("HEAD", a branch, a tag or a whole commit id), and the folder with specs."""

    url: str
    ref: str
    folder: str

    @classmethod
    def of(cls, text: str) -> Self:
        """The place that `text` names. Raises UsageError that says what is wrong with it."""
        before, _, folder = text.removeprefix(PREFIX).partition("#")
        path_at = before.find("/", before.find("://") + 3)
        at = before.rfind("@", max(0, path_at))
        url, ref = (before, "HEAD") if at < 0 else (before[:at], before[at + 1 :])
        if problem := _problem_of(url, ref, folder):
            raise UsageError(f"{PREFIX}{_without_secret(url)}: {problem}; example: git+https://host/repo@main#specs")
        return cls(url=url, ref=ref, folder=folder.strip("/"))


def _problem_of(url: str, ref: str, folder: str) -> str | None:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError as error:
        return str(error)
    if parts.scheme not in PROTOCOLS or not url.startswith(f"{parts.scheme}://"):
        return f"its protocol must be one of {', '.join(PROTOCOLS)}"
    if parts.password is not None:
        return "no password in it: git has credential helpers and keys of its own"
    if parts.scheme != "file" and (not _HOST.fullmatch(parts.hostname or "") or not port_is_fine):
        return "it names no host"
    if (parts.username or "").startswith("-") or not parts.path.strip("/") or not url.isprintable() or " " in url:
        return "this is no address of a repository"
    if not _REF.fullmatch(ref):
        return f"{ref!r} is no branch, tag or commit"
    if folder.startswith("-") or ".." in folder.split("/") or not folder.isprintable():
        return f"{folder!r} is no folder of a repository"
    return None


def _without_secret(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)

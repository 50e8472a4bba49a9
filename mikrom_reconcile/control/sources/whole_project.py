"""Whether specs are a whole project: if only a part is read, the rest looks removed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mikrom_reconcile.control.sources.files import bytes_of
from mikrom_reconcile.core.model.errors import SourceError, UsageError
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.core.parsing.documents import SUFFIXES, looks_like_a_spec
from mikrom_reconcile.core.parsing.yaml_text import read_file
from mikrom_reconcile.times_and_sizes import SOURCES

_KIND = re.compile(r"""kind["']?\s*:\s*["']?Project\b""")


def refuse_part(tree: SourceTree, outside: Iterable[tuple[str, bytes]]) -> None:
    """Raises UsageError for specs without a Project when one of the files around them, by path and content, has it."""
    for path, content in outside:
        if _has_project(path, content):
            if any(_has_project(file.path, file.text.encode()) for file in tree.files):
                return
            raise UsageError(
                f"these specs are a part of the project in {path}, and everything else in it would count as removed:"
                " give its whole folder, and --limit or --tags; or give them a Project of their own"
            )


def around(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """The spec files beside and above each of `paths`, up to its checkout, or a shared folder such as /tmp."""
    seen: set[Path] = set()
    for given in (place for path in paths for place in (path.absolute(), path.resolve())):  # and where links lead
        for folder in Path(os.path.normpath(given)).parents:
            if folder in seen:
                break
            seen.add(folder)
            try:
                if folder.stat().st_mode & stat.S_ISVTX:
                    break
                yield from _files_of(folder)
            except OSError:  # a folder that may not be listed
                continue
            if (folder / ".git").exists():
                break


def refuse_left_out(tree: SourceTree, paths: Iterable[Path]) -> None:
    """Raises UsageError where a Project is one of `paths` itself, and specs beside or below it are not read."""
    read = {os.path.realpath(file.path): file.text.encode() for file in tree.files}
    for path in paths:
        if not path.is_file() or not _has_project(str(path), read.get(os.path.realpath(path), b"")):
            continue
        for left, content in _below(path.parent):
            if os.path.realpath(left) not in read and looks_like_a_spec(content[: SOURCES.head_bytes]):
                raise UsageError(
                    f"{left} belongs to the project in {path}, and would count as removed: give the whole folder, and"
                    " --limit or --tags; or give it a Project of its own"
                )


def _below(folder: Path, *, named: bool = True) -> Iterator[tuple[str, bytes]]:
    """The spec files in a folder and in those in it, unless there is another Project or everybody writes there."""
    with suppress(OSError):  # a folder that may not be listed
        files = [(path, content, _has_project(path, content)) for path, content in _files_of(folder)]
        if folder.stat().st_mode & stat.S_ISVTX or (not named and any(project for *_, project in files)):
            return
        yield from ((path, content) for path, content, project in files if not project)
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _below(inner, named=False)


def _files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."):
            with suppress(SourceError):
                yield str(path), bytes_of(path)


def _has_project(path: str, content: bytes) -> bool:
    """A file that says so and cannot be read counts: it is meant to be one."""
    text = content.decode("utf-8-sig", "replace")
    if not _KIND.search(text):
        return False
    read = read_file(path, text)
    kinds = (document.value.get("kind") for document in read.documents if isinstance(document.value, dict))
    return bool(read.problems) or "Project" in kinds

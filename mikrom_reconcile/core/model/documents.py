"""What people wrote: files, documents, and what is wrong with them."""

from datetime import datetime
from typing import Any

import msgspec


class SourceFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of specs. `path` is shown in messages as it is."""

    path: str
    text: str


class SourceTree(msgspec.Struct, frozen=True, kw_only=True):
    """Every file of one reading of a source, sorted by path. `revision` names the content: a git commit where there is
    one, else a digest of the files. `author` made the commit. `verified_by` is a digest of the keys of which one signed
    it, or "". `commit` is its full name where it came from git directly.
    """

    revision: str
    files: tuple[SourceFile, ...]
    author: str = ""
    verified_by: str = ""
    commit: str = ""


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """What the last look at the source of scheduled runs gave; `name` is how it is set. `revision` is the last good one
    ("" for none), the `number`th that any control worker has seen, first `since` then, with the `digest` of its texts;
    `good_at` is when the source was last as good as that. `problem` says why it is not used as it is now, `broken`
    which revision and whose that is, where it could be read. `next_at` is when the next scheduled run is due.
    """

    name: str
    revision: str
    number: int
    digest: str
    since: datetime | None
    good_at: datetime | None
    looked_at: datetime
    problem: str = ""
    broken: str = ""
    next_at: datetime | None = None


class SpecDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One YAML document. `line` is where it begins, from 1; `name` is "" where it has none."""

    path: str
    line: int
    kind: str
    name: str
    body: dict[str, Any]


Pointer = tuple[str | int, ...]  # the way to a value inside a document


class Diagnostic(msgspec.Struct, frozen=True):
    """A mistake in a document: at the value at `pointer`, or at its key. Its place in the file is found later."""

    document: SpecDocument
    pointer: Pointer
    message: str
    hint: str = ""
    key: bool = False


class SpecProblem(msgspec.Struct, frozen=True, kw_only=True):
    """One mistake in the specs; `line` and `column` count from 1. `pointer` is the JSON pointer of the value ("" for
    the whole document). `hint` says what to write instead; `excerpt` is a part of the offending line (see
    SPECS.excerpt_characters). Either may be empty.
    """

    path: str
    line: int = 1
    column: int = 1
    pointer: str = ""
    message: str
    hint: str = ""
    excerpt: str = ""

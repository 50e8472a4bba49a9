"""Specs from files and folders, and whether they are a whole project: of a part, the rest looks removed."""

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from mikrom_reconcile.core.model.documents import SourceFile, SourceTree, SpecProblem
from mikrom_reconcile.core.model.encoding import digest_of
from mikrom_reconcile.core.model.errors import SourceError, SpecError, UsageError
from mikrom_reconcile.core.parsing import documents
from mikrom_reconcile.times_and_sizes import SPECS

ABBREVIATED = 12  # digits of a commit; what git itself would choose for a very large repository


def read_files(paths: Sequence[Path]) -> SourceTree:
    """Every spec file below these folders, and these files whatever they are called. Raises SourceError, SpecError."""
    try:
        found = {path: what for given in paths for path, what in _files_in(given)}
        # each file once, under its first name; files of variables under each, because the name says what they are for
        read = (path for path in sorted(found, reverse=True) if found[path] == "read")
        by_identity = {(os.path.realpath(path), *documents.variables_of(str(path))[:2]): path for path in read}
    except OSError as error:
        raise _unreadable(error) from error
    refused = [_legible(path) for path in sorted(found) if found[path] == "refuse"]
    contents = ((_legible(path), bytes_of(path)) for path in sorted(by_identity.values()))
    files = files_of(contents, where=", ".join(map(str, paths)), refused=refused)
    revision, author = _commit_of(paths) or (f"files:{digest_of(files).partition(':')[2][:12]}", "")
    return SourceTree(revision=revision, author=author, files=files)


def files_of(found: Iterable[tuple[str, bytes]], *, where: str, refused: Iterable[str]) -> tuple[SourceFile, ...]:
    """These files as texts. Raises SourceError for none, and SpecError, all at once, also for names `refused`."""
    files: list[SourceFile] = []
    problems = [SpecProblem(path=path, message=documents.NOT_READ, hint=documents.NOT_READ_HINT) for path in refused]
    size = 0
    for path, content in found:
        size = checked_size(path, size + len(content))
        if problem := _problem_in(path, content):
            problems.append(problem)
        else:
            files.append(SourceFile(path=path, text=content.decode("utf-8-sig")))
    if problems:
        raise SpecError(tuple(problems))
    if not files:
        raise SourceError(f"no *.yml or *.yaml file in {where}")
    return tuple(files)


def checked_size(path: str, size: int) -> int:
    """`size`, the bytes of all files up to `path`. Raises SourceError when they are too many."""
    if size > SPECS.tree_bytes:
        raise SourceError(f"more than {SPECS.tree_bytes >> 20} MiB of specs up to {path}; is the path right?")
    return size


def _files_in(given: Path) -> Iterator[tuple[Path, str]]:
    if not stat.S_ISDIR(given.stat().st_mode):
        yield given, "read"
        return
    empty = True
    for name, what in documents.sorted_out(_all_in(given)):
        if what != "look" or _looks_like_one(name):
            yield Path(name), "read" if what == "read" else "refuse"
            empty = False
    if empty:
        raise SourceError(f"no *.yml or *.yaml file in {given}")


def _all_in(given: Path) -> Iterator[str]:
    for folder, inner, names in os.walk(given, followlinks=True, onerror=_raise):
        if os.path.realpath(folder) in map(os.path.realpath, Path(folder).parents):
            raise SourceError(f"{folder} is a symbolic link to a folder that it lies in; remove the loop")
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))  # noqa: PTH118


def _raise(error: OSError) -> NoReturn:
    raise error


def _legible(path: Path) -> str:
    """A name may be no UTF-8, but what travels must be."""
    return os.fsencode(path).decode("utf-8", "replace")


def _looks_like_one(path: str) -> bool:
    """By how it begins; what is no regular file or cannot be read does not."""
    with suppress(SourceError):
        return documents.looks_like_a_spec(bytes_of(Path(path), max_bytes=SPECS.head_bytes))
    return False


def bytes_of(path: Path, *, max_bytes: int = SPECS.file_bytes + 1) -> bytes:
    """How a file begins: at most one byte more than a spec file may have. Raises SourceError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a FIFO would wait for a writer
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor is no path
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SourceError(f"{path} is not a regular file; specs are files and folders")
            return file.read(max_bytes)
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> SourceError:
    return SourceError(f"{error.filename}: {error.strerror}; give the path of the specs, or set MIKROM_SPECS")


def _problem_in(path: str, content: bytes) -> SpecProblem | None:
    if len(content) > SPECS.file_bytes:
        return SpecProblem(path=path, message=f"this file has more than {SPECS.file_bytes >> 20} MiB", hint="split it")
    try:
        content.decode("utf-8-sig")
        at, message = content.find(b"\0"), "a NUL byte: this is no text"
    except UnicodeDecodeError as error:
        at, message = error.start, f"byte 0x{content[error.start]:02x} is not UTF-8"
    if at < 0:
        return None
    column = len(content[content.rfind(b"\n", 0, at) + 1 : at].decode("utf-8-sig")) + 1
    line = content.count(b"\n", 0, at) + 1
    return SpecProblem(path=path, line=line, column=column, message=message, hint="save it as UTF-8")


def made_by(revision: str, author: str) -> str:
    """A revision and its author, where that is known."""
    return f"{revision} by {author}" if author else revision


def _commit_of(paths: Sequence[Path]) -> tuple[str, str] | None:
    """The commit around all of `paths` and its author; "-dirty" and nobody where they differ; None if unknown."""
    real = (path.resolve() for path in paths)  # to look for .git first costs less than to start git
    checkouts = {next((at for at in (path, *path.parents) if (at / ".git").exists()), None) for path in real}
    git = shutil.which("git")
    if git is None or len(checkouts) != 1 or (checkout := checkouts.pop()) is None:
        return None
    # a checkout's own configuration may name a program to run here
    command = [git, "-c", "core.fsmonitor=false", "-C", str(checkout), "--no-optional-locks"]
    status = ["status", "--porcelain=v2", "--branch", "--", *(str(path.resolve()) for path in paths)]
    with suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        said = _lines_of([*command, *status])
        commit = next((line.split()[-1] for line in said if line.startswith("# branch.oid ")), "(initial)")
        if any(not line.startswith("#") for line in said):
            return (f"{commit[:ABBREVIATED]}-dirty", "") if commit != "(initial)" else None
        return commit[:ABBREVIATED], _lines_of([*command, "show", "--no-patch", "--format=%an <%ae>", commit])[0]
    return None


def _lines_of(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, timeout=SPECS.git_status_s, check=True)
    return done.stdout.decode(errors="replace").splitlines()


_WHOLE = "give the whole folder, and --limit or --tags; or give"
_KIND = re.compile(r"""kind["']?\s*:\s*["']?Project\b""")


def refuse_part(files: Iterable[SourceFile], outside: Iterable[tuple[str, bytes]]) -> None:
    """Raises UsageError for specs without a Project when one of the files around them, by path and content, has it."""
    for path, content in outside:
        if _has_project(path, content):
            if any(_has_project(file.path, file.text.encode()) for file in files):
                return
            part = f"these specs are a part of the project in {path}, and all else in it"
            raise UsageError(f"{part} would count as removed: {_WHOLE} them a Project of their own")


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
                yield from _spec_files_of(folder)
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
            if os.path.realpath(left) not in read and documents.looks_like_a_spec(content[: SPECS.head_bytes]):
                part = f"{left} belongs to the project in {path}, and"
                raise UsageError(f"{part} would count as removed: {_WHOLE} it a Project of its own")


def _below(folder: Path, *, named: bool = True) -> Iterator[tuple[str, bytes]]:
    """The spec files in a folder and in those in it, unless there is another Project or everybody writes there."""
    with suppress(OSError):  # a folder that may not be listed
        files = [(path, content, _has_project(path, content)) for path, content in _spec_files_of(folder)]
        if folder.stat().st_mode & stat.S_ISVTX or (not named and any(project for *_, project in files)):
            return
        yield from ((path, content) for path, content, project in files if not project)
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
                yield from _below(inner, named=False)


def _spec_files_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(documents.SUFFIXES) and not path.name.startswith("."):
            with suppress(SourceError):
                yield str(path), bytes_of(path)


def _has_project(path: str, content: bytes) -> bool:
    """A file that says so and cannot be read counts: it is meant to be one."""
    text = content.decode("utf-8-sig", "replace")
    if not _KIND.search(text):
        return False
    reading = documents.Reading()
    kinds = [document.kind for document, _ in documents.read_file(SourceFile(path=path, text=text), reading)]
    return bool(reading.problems) or "Project" in kinds

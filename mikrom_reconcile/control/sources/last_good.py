"""The specs as a service uses them: as they are now if they are good, else as they last were, kept on disk."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from mikrom_reconcile.control.sources.files import made_by
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.encoding import digest_of
from mikrom_reconcile.core.model.errors import MikromError, SourceError, SpecError, UsageError
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.files import read_json, write_whole
from mikrom_reconcile.times_and_sizes import SPECS


class Good(msgspec.Struct, frozen=True, kw_only=True):
    """Specs that were found good, and when they first were; the higher `number` is newer, whatever the clocks say."""

    number: int
    since: datetime
    tree: SourceTree


class PollResult(NamedTuple):
    """The last good specs, if any, what is wrong with the source, and which revision by whom is `broken`, if known."""

    good: Good | None
    problem: str
    broken: str = ""


@dataclass(eq=False, repr=False)
class LastGood:
    """A source and its last good revision, kept in `folder`; `read` gets what is known, `identity` is of the signers to
    trust ("": all). Safe to use from many threads.
    """

    name: str
    read: Callable[[SourceTree | None], SourceTree]
    check: Callable[[SourceTree], object]
    identity: Callable[[], str]
    folder: Path
    _good: Good | None = None

    def __post_init__(self) -> None:
        self._path = self.folder / digest_of(self.name).partition(":")[2]
        self._lock = threading.Lock()

    def poll(self, highest: int = 0, *, accept: str = "") -> PollResult:
        """Read the source, and keep it if it is good, or a forced commit to `accept`; others count to `highest`."""
        with self._lock:
            known = self._known()
            tree: SourceTree | None = None
            try:
                tree = self.read(known.tree if known and not accept else None)
                _refuse_other(tree, accept)
                if known is None or tree != known.tree:
                    self.check(tree)
                    number = max(highest, known.number if known else 0) + 1
                    self._keep(Good(number=number, since=datetime.now(UTC), tree=tree))
            except (SourceError, SpecError, UsageError) as error:
                notes = "".join(getattr(error, "__notes__", ()))
                broken = made_by(tree.commit or tree.revision, tree.author) if tree else notes
                return PollResult(known, f"{broken}: {problem_in(error)}" if broken else problem_in(error), broken)
            return PollResult(self._good, "")

    def number(self) -> int:
        """That of the last good one that is known here; 0 for none."""
        with self._lock:
            known = self._known()
            return known.number if known else 0

    def take(self, good: Good) -> Good | None:
        """Use what another control worker found good, if it is newer than what is known here; what is known then."""
        with self._lock:
            known = self._known()
            if self._is_trusted(good) and (known is None or known.number < good.number):
                self._keep(good)
            return self._good

    def _known(self) -> Good | None:
        known = self._good
        with suppress(OSError):
            known = known or read_json(self._path, Good, max_bytes=SPECS.kept_bytes)
        self._good = known if known and self._is_trusted(known) else None
        return self._good

    def _is_trusted(self, good: Good) -> bool:
        return self.identity() in {"", good.tree.verified_by}

    def _keep(self, good: Good) -> None:
        self._good = good
        lock = self._path.with_suffix(".lock")
        with suppress(OSError), locks.held(lock, unlink=True) as is_ours:  # it is known in this process all the same
            if is_ours:  # else another worker of this machine writes what it found
                write_whole(self._path, msgspec.json.encode(good))


def _refuse_other(tree: SourceTree, accept: str) -> None:
    if not tree.revision.startswith(accept[: len(tree.revision)]):
        raise SourceError(f"this is there now, not {accept}, which was to be accepted")


def problem_in(error: MikromError) -> str:
    """The error in one line; of specs with the first of its problems."""
    if not isinstance(error, SpecError):
        return str(error)
    first = error.problems[0]
    return f"{error}, the first in {first.path}:{first.line}:{first.column}: {first.message}"

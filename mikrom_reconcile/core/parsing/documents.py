"""A source tree to documents that obey their schema, and every mistake in the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec

from mikrom_reconcile.core.model.errors import SpecError
from mikrom_reconcile.core.model.specs import Diagnostic, SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.parsing.schema_errors import Schemas, Validators, describe_value, nearest
from mikrom_reconcile.core.parsing.spec_files import variables_of
from mikrom_reconcile.core.parsing.yaml_text import Places, YamlDocument, read_file
from mikrom_reconcile.core.parsing.yaml_words import plain, shown
from mikrom_reconcile.times_and_sizes import SPECS

_PLANNED = ("Refactor",)


class Reading(msgspec.Struct, kw_only=True):
    """What could be read of a source tree.

    `documents` obey their schema, in file order; `broken` do not, and `diagnostics` say why. Of the broken ones, those
    that are `misspelt` only have unknown keys. `problems` are what YAML itself refused. `whole` says that no document
    is missing: every one is good or broken.
    """

    documents: list[SpecDocument] = []
    broken: list[SpecDocument] = []
    misspelt: list[SpecDocument] = []
    diagnostics: list[Diagnostic] = []
    problems: list[SpecProblem] = []
    whole: bool = True

    def is_full(self) -> bool:
        """Whether there are more mistakes than are reported."""
        return len(self.problems) + len(self.diagnostics) > SPECS.max_problems


def problems_of(found: Iterable[Diagnostic], tree: SourceTree) -> list[SpecProblem]:
    """The mistakes with their places; only the documents that have any are searched for them."""
    places = Places(tree)
    return [places.problem(each) for each in found]


def raise_for(found: Collection[Diagnostic], tree: SourceTree) -> None:
    """Raise SpecError if any mistakes were found."""
    if found:
        raise SpecError(dedupe_by_position(problems_of(found, tree)))


def dedupe_by_position(problems: Iterable[SpecProblem]) -> tuple[SpecProblem, ...]:
    """Sorted by place; of several at one place, the one that points deepest into the document stays. At most
    SPECS.max_problems, and one that says so.
    """
    kept: dict[tuple[str, int, int], SpecProblem] = {}
    for problem in sorted(problems, key=lambda problem: -problem.pointer.count("/")):
        kept.setdefault((problem.path, problem.line, problem.column), problem)
    reported = [kept[key] for key in sorted(kept)]
    if len(reported) > SPECS.max_problems:
        more = f"only the first {SPECS.max_problems} problems are told; this and others follow"
        reported[SPECS.max_problems :] = [msgspec.structs.replace(reported[SPECS.max_problems], message=more, hint="")]
    return tuple(reported)


def read_tree(tree: SourceTree, schemas: Schemas) -> Reading:
    """Everything in the tree, until there are more mistakes than are reported."""
    validators = Validators(schemas)
    reading = Reading()
    for file in tree.files:
        found = read_file(file.path, file.text)
        reading.problems += found.problems
        reading.whole = reading.whole and found.whole
        for document in found.documents:
            if reading.is_full():
                break
            _add(reading, file.path, document, validators)
        if reading.is_full():
            reading.whole = False
            break
    return reading


def _add(reading: Reading, path: str, found: YamlDocument, validators: Validators) -> None:
    document = _spec_document(path, found)
    mistakes = list(islice(_mistakes(document, found.value, validators), SPECS.max_problems))
    (reading.broken if mistakes else reading.documents).append(document)
    if mistakes and all(each.key for each in mistakes) and isinstance(document.body.get("spec"), dict):
        reading.misspelt.append(document)
    reading.diagnostics += mistakes


def _spec_document(path: str, found: YamlDocument) -> SpecDocument:
    body = found.value if isinstance(found.value, dict) else {}
    kind, name, _ = _variables_of(path)
    if kind:
        return SpecDocument(path=path, line=found.line, kind=kind, name=name, body=body)
    if found.spelled:
        body = plain(body, kept=_is_variables)
    metadata = body.get("metadata")
    name = str(metadata.get("name")) if isinstance(metadata, dict) else ""
    return SpecDocument(path=path, line=found.line, kind=str(body.get("kind")), name=name, body=body)


def _is_variables(path: tuple[str, ...]) -> bool:
    """Whether variables stand at `path` of a Fleet or an Inventory."""
    return path == ("spec", "vars") or (
        path[:1] == ("spec",) and path[3:] == ("vars",) and path[1] in {"hosts", "groups"}
    )


_variables_of = lru_cache(maxsize=1)(variables_of)  # one file after another


def _mistakes(document: SpecDocument, value: Any, validators: Validators) -> Iterator[Diagnostic]:
    kind = document.kind
    if not isinstance(value, dict):
        yield Diagnostic(document, (), "a document must be a mapping", "begin with apiVersion, kind and metadata")
    elif _variables_of(document.path)[0]:
        return
    elif "kind" not in value:
        yield Diagnostic(document, (), "kind is missing", f"known are {', '.join(validators.kinds)}")
    elif kind in _PLANNED:
        yield Diagnostic(document, ("kind",), f"kind {kind} is not implemented yet")
    elif kind not in validators.kinds:
        named = isinstance(value["kind"], str)
        message = f"unknown kind {shown(kind)}" if named else f"kind cannot be {describe_value(value['kind'])}"
        yield Diagnostic(document, ("kind",), message, nearest(kind, validators.kinds))
    else:
        yield from validators.mistakes(document)

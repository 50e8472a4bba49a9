"""Whatever becomes of a spec file, there is an answer: fine, or mistakes with places; never a traceback, and soon.

Five thousand spoilt files, and both YAML parsers and two JSON Schema validators held against each other on all of them.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import jsonschema_rs
import pytest

from mikrom_reconcile.control.sources.files import read_files
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree, SpecProblem
from mikrom_reconcile.core.model.errors import SourceError, SpecError
from mikrom_reconcile.core.parsing.documents import _SLOWLY, _quickly
from mikrom_reconcile.core.parsing.yaml_nodes import read_nodes
from mikrom_reconcile.core.parsing.yaml_words import Lines
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.formats import problems_text
from mikrom_reconcile.output.text import Style
from mikrom_reconcile.wiring import schemas
from tests.case import read_case
from tests.properties.bad_specs import spoilt
from tests.properties.chance import seeds

BATCHES, DOCUMENTS = 42, 120
EVERY_BATCH = pytest.mark.parametrize("batch", seeds(BATCHES))
LONGEST_S = 2.0
PROJECTS = [read_case(file).texts for file in (Path(__file__).parents[1] / "cases/errors").glob("*.yml")]


def texts(batch: int) -> list[str]:
    return [spoilt(Random(f"{batch}/{number}")) for number in range(DOCUMENTS)]


def problems_in(tree: SourceTree) -> tuple[SpecProblem, ...]:
    try:
        render_all(validate_specs(tree, schemas(), here="localhost"), here="localhost")
    except SpecError as error:
        return error.problems
    except SourceError:  # nothing is left in the file
        return ()
    return ()


@EVERY_BATCH
def test_a_spoilt_file_is_answered_soon_and_every_mistake_has_a_place_inside_it(batch: int) -> None:
    wrong = 0
    for text in texts(batch):
        began_s = time.process_time()
        problems = problems_in(SourceTree(revision="r", files=(SourceFile(path="specs/web.yml", text=text),)))
        assert time.process_time() - began_s < LONGEST_S
        wrong += bool(problems)
        check(problems, {"specs/web.yml": text})
    assert wrong > DOCUMENTS // 2, "the accidents are too harmless"


@EVERY_BATCH
def test_mistakes_of_one_project_and_another_meet(batch: int) -> None:
    """What one document gets wrong is what another refers to."""
    chance = Random(batch)
    for _ in range(30):
        files = dict(chance.choice(PROJECTS))
        for path, text in chance.choice(PROJECTS).items():
            files[path if "/" in path or path not in files else f"x-{path}"] = text
        tree = SourceTree(revision="r", files=tuple(SourceFile(path=path, text=files[path]) for path in sorted(files)))
        check(problems_in(tree), files)


@EVERY_BATCH
def test_broken_bytes_are_answered_too(batch: int, tmp_path: Path) -> None:
    chance = Random(batch)
    for text in texts(batch)[::25]:
        content = bytearray(text.encode("utf-8", "surrogatepass"))
        for _ in range(chance.choice([0, 1, 5])):
            at = chance.randrange(len(content) + 1)
            content[at : at + chance.choice([0, 1, 9])] = chance.randbytes(2)
        (tmp_path / "web.yml").write_bytes(content)
        try:
            problems = problems_in(read_files([tmp_path]))
        except SpecError as error:
            problems = error.problems
        check(problems, None)


def check(problems: tuple[SpecProblem, ...], texts: dict[str, str] | None) -> None:
    """Places are inside the file, each is told once, and every form can show them."""
    assert list(problems) == sorted(problems, key=lambda item: (item.path, item.line, item.column))
    assert len({(item.path, item.line, item.column) for item in problems}) == len(problems)
    for item in problems:
        assert item.message
        assert "Traceback" not in item.message
        assert len(item.message) < 500
        if texts is not None:
            lines = re.split("\r\n|\r|\n", texts[item.path])
            assert 1 <= item.line <= len(lines)
            assert 1 <= item.column <= len(lines[item.line - 1]) + 1
            assert item.excerpt in lines[item.line - 1]
    if problems:
        assert problems_text(problems, Style(colour=False)).count("\n") >= 2 * len(problems) - 1
    json.loads(formats.json_of(formats.validation_document(problems, (), (0, 0, 0))))
    for form, show in formats.REPORTS.items():
        shown = show(problems, (), "")
        if form == "sarif":
            json.loads(shown)
        elif form == "junit":
            assert len(ET.fromstring(shown).findall(".//failure")) == len(problems)
        elif form == "github":
            assert shown.count("\n") == shown.count("::error file=") == len(problems)


@EVERY_BATCH
def test_what_is_read_quickly_means_what_the_slow_reader_says(batch: int) -> None:
    quick = 0
    for text in texts(batch):
        for start, end in Lines("web.yml", text).cuts:
            value = _quickly(text[start:end])
            if value is _SLOWLY:
                continue
            quick += 1
            roots, problems, _ = read_nodes(Lines("web.yml", text), start, end)
            assert problems == []
            assert repr([root.value for root in roots]) == repr([] if value is None else [value]), text[start:end]
    assert quick > DOCUMENTS // 10, "hardly anything is read quickly"


@EVERY_BATCH
def test_another_validator_accepts_the_same_documents(batch: int) -> None:
    kinds = {kind: json.loads(text) for kind, text in schemas().items()}
    for text in texts(batch):
        for start, end in Lines("web.yml", text).cuts:
            for root in read_nodes(Lines("web.yml", text), start, end)[0]:
                schema = kinds.get(str(root.value.get("kind"))) if isinstance(root.value, dict) else None
                if schema and not _ends_a_line(root.value):
                    other = jsonschema.Draft202012Validator(schema).is_valid(root.value)
                    assert jsonschema_rs.Draft202012Validator(schema).is_valid(root.value) == other, text


def _ends_a_line(value: Any) -> bool:
    """Python's `$` allows a line break at the end, that of JSON Schema does not."""
    return "\\n" in json.dumps(value)

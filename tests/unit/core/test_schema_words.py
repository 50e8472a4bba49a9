"""Complaints that no schema of today brings forth, or only a long document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mikrom_reconcile.core.model.documents import SpecDocument
from mikrom_reconcile.core.parsing.schema_errors import expectation, nearest, schema_mistakes


def told(schema: dict[str, Any], document: Any) -> list[str]:
    wrong = SpecDocument(path="", line=1, kind="Kind", name="", body=document)
    return [f"{found.message}; {found.hint}" for found in schema_mistakes(wrong, json.dumps(schema))]


@pytest.mark.parametrize(
    ("schema", "document", "words"),
    [
        ({"type": "string", "maxLength": 3}, "café", "the document has 4 characters; at most 3 are allowed; "),
        ({"maxItems": 0, "description": "Who."}, [1], "the document cannot be a list; Who."),
        ({"minimum": 1}, 0, "the document is 0; it must be from 1 up; "),
        ({"uniqueItems": True}, ["a", "b", "a"], 'the document has "a" twice; remove one of the two'),
        ({"uniqueItems": True}, [*range(1001), 1000], "the document has something twice; "),
        ({"pattern": "^x$"}, "x\n", 'the document cannot be "x\\n"; it must match ^x$'),
        ({"required": ["a"], "properties": {"a": {}}}, {"b": 1}, "a is missing in the document; "),
    ],
)
def test_what_is_wrong_is_said_in_words(schema: dict[str, Any], document: Any, words: str) -> None:
    assert told(schema, document) == [words]


def test_a_document_that_is_refused_for_what_cannot_be_told_is_still_a_mistake() -> None:
    names = {"propertyNames": {"pattern": "^\\s$"}}
    assert told(names, {"\x1c": 1}) == ["the document does not obey its schema; "]  # a space to Python alone


def test_among_thousands_of_words_the_nearest_begins_alike() -> None:
    known = [f"a{number}" for number in range(2000)] + ["web-000"]
    assert nearest("web-00", known) == "did you mean web-000?"
    assert nearest("zzz", known).endswith("a11, and 1989 more")
    assert nearest("zzz", ()) == ""


def test_what_msgspec_misses_has_to_be_given() -> None:
    assert expectation("Object missing required field `network`") == "it must be given"

"""Which documents the quick parser gets, whose time grows with depth times length."""

from __future__ import annotations

from mikrom_reconcile.core.model.documents import SourceFile
from mikrom_reconcile.core.parsing import documents


def test_what_may_be_nested_deep_is_left_to_the_parser_that_counts_levels() -> None:
    few, many = "[" + "{a: 1}, " * 249 + "]", "[" + "{a: 1}, " * 250 + "]"
    assert documents._quickly(few) == [{"a": 1}] * 249
    assert documents._quickly(many) is documents._SLOWLY
    read = documents.read_file(SourceFile(path="a.yml", text=many), documents.Reading())
    assert [value for _, value in read] == [[{"a": 1}] * 250]


def test_brackets_without_end_are_told_where_they_become_too_deep() -> None:
    for text in ("[" * 100_000, "{a: " * 49_000):
        reading = documents.Reading()
        assert not [*documents.read_file(SourceFile(path="a.yml", text=text), reading)]
        (problem,) = reading.problems
        assert problem.message == "nested deeper than 32 levels"

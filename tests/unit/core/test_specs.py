"""How much of what is wrong is told, and where reading ends."""

from __future__ import annotations

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree, SpecProblem
from mikrom_reconcile.core.model.errors import SpecError
from mikrom_reconcile.core.parsing.documents import dedupe_by_position
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.times_and_sizes import SPECS

HEAD = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\n"


def problem(line: int, pointer: str = "", message: str = "wrong") -> SpecProblem:
    return SpecProblem(path="web.yml", line=line, column=1, pointer=pointer, message=message, hint="write it right")


def problems_in(*texts: str) -> tuple[SpecProblem, ...]:
    files = tuple(SourceFile(path=f"{number}.yml", text=text) for number, text in enumerate(texts))
    with pytest.raises(SpecError) as raised:
        validate_specs(SourceTree(revision="r1", files=files), wiring.schemas(), here="localhost")
    return raised.value.problems


def test_of_two_complaints_about_one_place_the_deeper_is_told() -> None:
    told = dedupe_by_position(
        [problem(2), problem(1, "/spec", "shallow"), problem(1, "/spec/hosts", "deep"), problem(1)]
    )
    assert [(item.line, item.message) for item in told] == [(1, "deep"), (2, "wrong")]


def test_no_more_is_told_than_anybody_reads() -> None:
    assert len(dedupe_by_position([problem(line) for line in range(SPECS.max_problems)])) == SPECS.max_problems
    told = dedupe_by_position([problem(line) for line in range(SPECS.max_problems + 7)])
    assert len(told) == SPECS.max_problems + 1
    assert told[SPECS.max_problems - 1] == problem(SPECS.max_problems - 1)
    assert told[-1].message == f"only the first {SPECS.max_problems} problems are told; this and others follow"
    assert (told[-1].line, told[-1].hint) == (SPECS.max_problems, "")


def test_reading_ends_where_more_is_wrong_than_anybody_reads() -> None:
    unknown = HEAD + "spec: {replicas: 1}\n" + "".join(f"key{number}: 1\n" for number in range(300))
    assert len(problems_in(unknown, unknown, unknown)) == SPECS.max_problems
    documents = "---\n".join(
        HEAD.replace("web", f"web{n}") + "spec: {}\nkey: 1\n" for n in range(SPECS.max_problems + 9)
    )
    assert len(problems_in(documents)) == SPECS.max_problems
    twice = HEAD + "spec: {replicas: 1}\n" + "".join("a: 1\n" for _ in range(SPECS.max_problems + 9))
    assert {item.path for item in problems_in(twice, twice)} == {"0.yml"}
    assert len(problems_in(twice)) == SPECS.max_problems + 1


def test_of_groups_in_circles_only_so_many_are_told() -> None:
    groups = "".join(f"    g{number}: {{children: [g{number}]}}\n" for number in range(SPECS.max_problems + 9))
    inventory = (
        f"apiVersion: mikrom/v1\nkind: Inventory\nmetadata: {{name: i}}\nspec:\n  hosts: {{hv1: }}\n  groups:\n{groups}"
    )
    assert len(problems_in(inventory)) == SPECS.max_problems


def test_a_file_has_only_so_many_documents() -> None:
    (only,) = problems_in("---\n" * (SPECS.max_documents + 1))
    assert (only.line, only.message, only.hint) == (
        1,
        f"more than {SPECS.max_documents} documents in one file",
        "split it",
    )


def test_aliases_do_not_hide_how_deep_something_goes() -> None:
    chain = "".join(f"  a{number}: &a{number} [*a{number - 1}]\n" for number in range(1, 40))
    (only,) = problems_in(f"{HEAD}spec:\n  a0: &a0 [1]\n{chain}")
    assert only.message == "nested deeper than 32 levels, aliases counted"

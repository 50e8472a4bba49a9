"""How much of what is wrong is told."""

from __future__ import annotations

from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.core.specs import one_per_place
from mikrom_reconcile.core.yaml_text import MAX_PROBLEMS


def problem(line: int, pointer: str = "", message: str = "wrong") -> SpecProblem:
    return SpecProblem(path="web.yml", line=line, column=1, pointer=pointer, message=message, hint="write it right")


def test_of_two_complaints_about_one_place_the_deeper_is_told() -> None:
    told = one_per_place([problem(2), problem(1, "/spec", "shallow"), problem(1, "/spec/hosts", "deep"), problem(1)])
    assert [(item.line, item.message) for item in told] == [(1, "deep"), (2, "wrong")]


def test_no_more_is_told_than_anybody_reads() -> None:
    assert len(one_per_place([problem(line) for line in range(MAX_PROBLEMS)])) == MAX_PROBLEMS
    told = one_per_place([problem(line) for line in range(MAX_PROBLEMS + 7)])
    assert len(told) == MAX_PROBLEMS + 1
    assert told[MAX_PROBLEMS - 1] == problem(MAX_PROBLEMS - 1)
    assert told[-1].message == f"only the first {MAX_PROBLEMS} problems are told; this and others follow"
    assert (told[-1].line, told[-1].hint) == (MAX_PROBLEMS, "")

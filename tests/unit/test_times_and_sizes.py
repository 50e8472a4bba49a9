"""Every time, size and count that bounds something stands in `times_and_sizes`, with its unit and its reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mikrom_reconcile
from mikrom_reconcile import times_and_sizes

PACKAGE = Path(mikrom_reconcile.__file__).parent
WITH_UNIT = re.compile(r"_?[A-Z].*_(S|MS|BYTES|KIB|MIB|GIB|CHARACTERS)")
GROUPS = {group for group, *_ in times_and_sizes.rows()}


def constants(module: ast.Module) -> Iterator[str]:
    """Names at the top of a module that stand for a number with a unit."""
    for statement in module.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            parts = [*ast.walk(statement.value)]
            numbers = [part for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, int | float)]
            only_numbers = all(
                isinstance(
                    part,
                    ast.Constant | ast.BinOp | ast.UnaryOp | ast.Tuple | ast.operator | ast.unaryop | ast.expr_context,
                )
                for part in parts
            )
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            if numbers and only_numbers:
                yield from filter(WITH_UNIT.fullmatch, names)


def test_no_module_but_limits_has_a_time_or_a_size_of_its_own() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        for name in constants(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == {
        "dispatch/control_worker/metrics.py: _RUN_BUCKETS_S",  # of a histogram
        "dispatch/control_worker/metrics.py: _ACTION_BUCKETS_S",
    }


def test_every_limit_is_positive_and_has_a_reason() -> None:
    for group, name, value, reason in times_and_sizes.rows():
        assert len(reason) > 10, name
        assert getattr(getattr(times_and_sizes, group), name) == value > 0


def test_every_line_is_a_limit_or_begins_a_group() -> None:
    lines = (PACKAGE / "times_and_sizes.yml").read_text("utf-8").splitlines()
    limits = sum(line.startswith(" ") for line in lines)
    assert limits == sum(1 for _ in times_and_sizes.rows())
    assert len(lines) == limits + 2 * len(GROUPS) + 1  # each with an empty line before it, after the first line


def test_all_code_names_limits_that_there_are_and_every_limit_is_used() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(rf"\b((?:{'|'.join(GROUPS)})\.[a-z]\w*)", source))
    assert used == {f"{group}.{name}" for group, name, _, _ in times_and_sizes.rows()}

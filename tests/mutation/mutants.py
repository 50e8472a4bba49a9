"""Small faults in the functions of a module, one at a time: what a person might write instead, and no test may miss.

A mutant replaces the code of one function in this process, which is to be forked for it. Tables at the top of a module
and the texts of messages are left as they are.
"""

from __future__ import annotations

import ast
import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """One fault: the place with this number, in the function of this name that begins in this line."""

    path: Path
    function: str
    line: int
    number: int

    def __str__(self) -> str:
        _, place, change = self._place()
        before = ast.unparse(place)
        change()
        return f"{self.path.parent.name}/{self.path.name}:{self.function}: `{before}` -> `{ast.unparse(place)}`"

    def apply(self) -> None:
        """Let every function of this process that has the code have the faulty one instead."""
        tree, _, change = self._place()
        change()
        code = _code_in(compile(ast.fix_missing_locations(tree), str(self.path), "exec"), self.function)
        found = [it for it in gc.get_objects() if isinstance(it, FunctionType) and _is_of(it.__code__, code)]
        assert found, f"nobody has {self}"
        for function in found:
            function.__code__ = code

    def _place(self) -> tuple[ast.Module, ast.expr, Callable[[], None]]:
        tree = ast.parse(self.path.read_text(encoding="utf-8"))
        function = next(it for name, it in _functions(tree, "") if (name, it.lineno) == (self.function, self.line))
        return tree, *[*_places(function)][self.number]


def _is_of(code: CodeType, other: CodeType) -> bool:
    same = (code.co_qualname, code.co_firstlineno, code.co_freevars)
    return code.co_filename == other.co_filename and same == (
        other.co_qualname,
        other.co_firstlineno,
        other.co_freevars,
    )


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All of a module."""
    for name, function in _functions(ast.parse(path.read_text(encoding="utf-8")), ""):
        for number, _ in enumerate(_places(function)):
            yield Mutant(path, name, function.lineno, number)


def _functions(node: ast.AST, above: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Those at the top, and methods; what is inside of one is part of it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield above + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{above}{child.name}.")


def _places(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, Callable[[], None]]]:
    """Each place that can be changed, with what changes it."""
    for node in (node for statement in function.body for node in ast.walk(statement)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPPED:
            yield node, partial(node.ops.__setitem__, 0, SWAPPED[type(node.ops[0])]())
        elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in SWAPPED:
            yield node, partial(setattr, node, "op", SWAPPED[type(node.op)]())
        elif isinstance(node, ast.IfExp):
            yield node, partial(setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node, partial(setattr, node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int):
            changed = (not node.value) if isinstance(node.value, bool) else node.value + 1
            yield node, partial(setattr, node, "value", changed)
        elif isinstance(node, ast.Name) and node.id in RENAMED:
            yield node, partial(setattr, node, "id", RENAMED[node.id])


def _code_in(module: CodeType, qualname: str) -> CodeType:
    below = [const for const in module.co_consts if isinstance(const, CodeType)]
    found = next(it for it in below if it.co_qualname == qualname or qualname.startswith(f"{it.co_qualname}."))
    return found if found.co_qualname == qualname else _code_in(found, qualname)

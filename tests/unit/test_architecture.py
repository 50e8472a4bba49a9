"""What docs/ARCHITECTURE.md names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py|(?:[a-z_]+/)+)(?::([A-Za-z_.]+))?`", TEXT)))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda word: word or "whole")
def test_each_path_and_name_exists(path: str, name: str) -> None:
    found = [base / path for base in (ROOT / "mikrom_reconcile", ROOT) if (base / path).exists()]
    assert found, f"{path} is gone: name what does its work now"
    body = ast.parse(found[0].read_text(encoding="utf-8")).body if name else []
    for part in filter(None, name.split(".")):
        inside = [it for it in body if isinstance(it, ast.ClassDef | ast.FunctionDef) and it.name == part]
        assert inside, f"{path} has no {name}"
        body = inside[0].body


def test_there_is_something_to_find() -> None:
    assert len(NAMED) > 50

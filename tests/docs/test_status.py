"""The README does not call "not yet" what the schema or the command line already takes, and names every command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mikrom_reconcile.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEPT = {"hello"}
"""The one image that there is, named as such."""


def words_of(schema: Any) -> Iterator[str]:
    """Every property and every word that a schema takes."""
    if isinstance(schema, dict):
        yield from schema.get("properties", ())
        yield from (str(word) for word in schema.get("enum", ()))
        for value in schema.values():
            yield from words_of(value)
    if isinstance(schema, list):
        for value in schema:
            yield from words_of(value)


def test_nothing_that_works_is_called_not_yet() -> None:
    listed = set(re.findall(r"`(\w+)`", README.partition("\nNot yet")[2].partition("\nLicence")[0])) - KEPT
    taken = {word for path in (ROOT / "schemas").glob("*.json") for word in words_of(json.loads(path.read_text()))}
    assert listed, "the README has lost its list of what is not there yet"
    assert listed & (taken | set(COMMANDS)) == set()


def test_every_command_is_named() -> None:
    commands = README.partition("## Commands")[2].partition("\n## ")[0]
    named = {word for span in re.findall(r"`([\w ]+)`", commands) for word in span.split()}
    assert set(COMMANDS) <= named

"""The glossary has every word that people meet, and no word twice."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from mikrom_reconcile.cli.commands import COMMANDS
from mikrom_reconcile.core.model.desired import Halt, State
from mikrom_reconcile.core.model.observed import Phase
from mikrom_reconcile.core.model.plan import ChangeKind, Impact, Result, Verb
from mikrom_reconcile.core.planning import rules
from mikrom_reconcile.output.plan import FORMER_RULES

ROOT = Path(__file__).parents[2]
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", GLOSSARY, re.MULTILINE))


def terms_under(section: str) -> list[str]:
    """The first column of the section's table, without its head."""
    rows = re.findall(r"^\| ([^|]+) \|", SECTIONS[section], re.MULTILINE)
    return [term.strip("`") for row in rows[1:] for term in row.split(", ")]


@pytest.mark.parametrize(
    ("section", "words"),
    [("States", State), ("Phases", Phase), ("Impacts", Impact), ("Results", Result)],
)
def test_every_word_of_a_type_is_explained_and_no_other(section: str, words: Any) -> None:
    assert sorted(terms_under(section)) == sorted(get_args(words))


def test_every_kind_of_change_is_explained_and_that_there_is_none() -> None:
    assert sorted(terms_under("Kinds of change")) == sorted([*get_args(ChangeKind), "unchanged"])


def test_every_verb_is_named() -> None:
    named = set(re.findall(r"`(\w+)`", SECTIONS["Verbs"]))
    assert set(get_args(Verb)) <= named


def test_every_rule_has_an_id_of_its_own_that_is_written_down_and_explained() -> None:
    package = {path: path.read_text(encoding="utf-8") for path in (ROOT / "mikrom_reconcile").rglob("*.py")}
    guard = r"(?:Refusal|with_kind|with_refusals)\([^)]*?(?:rule|held_by)=\"(.+?)\""
    refusing = {found for text in package.values() for found in re.findall(guard, text)}
    refusing |= {*get_args(get_type_hints(Halt)["outcome"])}
    explained = terms_under("Rules")
    assert explained == [*rules.RULES, *(term for term in explained if term in refusing)]
    assert set(explained) == {*rules.RULES, *refusing}
    assert len(set(explained)) == len(explained) == len(refusing) + len(set(rules.RULES.values()))
    assert [rule for rule in explained if not re.fullmatch("[a-z]+(-[a-z]+)*", rule)] == []
    assert set(rules.STANDS_IN_THE_WAY) <= set(rules.RULES)
    asked = [path for path, text in package.items() if re.search(r"(rule|says)\w*\.__name__", text)]
    assert asked == [], "the name of a function is no id"


def test_what_rules_were_called_is_told_for_one_release() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| .* \| `(\w+)` \|$", SECTIONS["Rules"], re.MULTILINE))
    assert rows == FORMER_RULES


def test_every_command_is_explained_and_no_other() -> None:
    assert sorted(terms_under("Commands")) == sorted(f"mikrom {name}" for name in COMMANDS)


def test_no_other_term_is_explained_twice() -> None:
    counts = Counter(
        term
        for section in ("What you write", "What a host keeps and sees", "What a run does", "Where it runs")
        for term in terms_under(section)
    )
    assert len(counts) > 50
    assert [term for term, count in counts.items() if count > 1] == []

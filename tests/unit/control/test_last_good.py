"""A source that breaks or goes away: what was good last is used on, and nothing is ever made of nothing."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile import wiring
from mikrom_reconcile.control.sources.last_good import LastGood
from mikrom_reconcile.settings import load

WEB = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: %d, template: {image: hello}}\n"


@pytest.fixture
def specs(own_environment: Path) -> Path:
    folder = own_environment / "specs"
    folder.mkdir()
    (folder / "web.yml").write_text(WEB % 1)
    return folder


def source(specs: Path) -> LastGood:
    """As a process that has just started has it."""
    state = specs.parent / "state"
    return wiring.make_source(load({"MIKROM_STATE_DIR": str(state), "MIKROM_SPECS": str(specs)}))


def test_what_is_good_is_used_as_it_is(specs: Path) -> None:
    found = source(specs)
    first, second = found.poll(), None
    (specs / "web.yml").write_text(WEB % 2)
    second = found.poll()
    assert first.good is not None
    assert second.good is not None
    assert (first.problem, second.problem) == ("", "")
    assert second.good.tree.files[0].text == WEB % 2
    assert (first.good.number, second.good.number) == (1, 2)


@pytest.mark.parametrize("again", [False, True], ids=["the same process", "another process"])
@pytest.mark.parametrize(
    ("what", "problem"),
    [("broken", "1 problem(s) in the specs, the first in"), ("empty", "no *.yml"), ("gone", "No such file")],
)
def test_what_is_broken_empty_or_gone_changes_nothing(specs: Path, what: str, problem: str, again: bool) -> None:  # noqa: FBT001
    found = source(specs)
    good = found.poll().good
    assert good is not None
    if what == "broken":
        (specs / "web.yml").write_text(WEB % -1)
    else:
        (specs / "web.yml").unlink()
    if what == "gone":
        specs.rmdir()
    look = (source(specs) if again else found).poll()
    assert look.good == good
    assert problem in look.problem


def test_without_a_last_good_one_there_is_none(specs: Path) -> None:
    (specs / "web.yml").write_text("kind: [")
    look = source(specs).poll()
    assert look.good is None
    assert "web.yml:1" in look.problem


def test_a_damaged_last_good_one_is_none(specs: Path) -> None:
    source(specs).poll()
    (kept,) = (specs.parent / "state" / "source").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    (specs / "web.yml").unlink()
    assert source(specs).poll().good is None


def test_what_another_has_seen_since_is_newer(specs: Path) -> None:
    """Whatever the clocks say: this one is set back when the newer one comes."""
    here, there = source(specs), source(specs)
    old = here.poll().good
    (specs / "web.yml").write_text(WEB % 3)
    assert old is not None
    new = there.poll(highest=old.number).good
    assert new is not None
    new = replace(new, since=old.since - timedelta(hours=1))
    (specs / "web.yml").unlink()
    here.take(new)
    assert here.poll().good == new
    there.take(old)
    kept = there.poll().good
    assert kept is not None
    assert kept.tree == new.tree

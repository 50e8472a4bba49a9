"""What no template shows today: lists, and that merging leaves alone what it merges."""

from __future__ import annotations

from mikrom_reconcile.core.specs.load import merged


def test_lists_replace() -> None:
    assert merged({"a": [1, 2], "b": [3]}, {"a": [4]}) == {"a": [4], "b": [3]}


def test_a_map_replaces_what_is_none_and_the_other_way_round() -> None:
    assert merged({"a": 1, "b": {"x": 1}}, {"a": {"x": None, "y": 2}, "b": 3}) == {"a": {"y": 2}, "b": 3}


def test_what_is_merged_is_left_as_it_was() -> None:
    base, over = {"a": {"x": 1}}, {"a": {"x": None, "y": {"z": 1}}}
    result = merged(base, over)
    result["a"]["y"]["z"] = 2
    assert (base, over) == ({"a": {"x": 1}}, {"a": {"x": None, "y": {"z": 1}}})

"""Lookups in what no template has today: lists, and maps in lists."""

from __future__ import annotations

from mikrom_reconcile.core.parsing.variables import Layer, Scope, names_in

SCOPE = Scope(
    Layer(origin="one", values={"a": 1, "list": ["${a}", {"x": "<${b}>"}]}), Layer(origin="two", values={"b": 2})
)


def test_lists_are_resolved_item_by_item() -> None:
    assert SCOPE.resolve({"all": ["${a}", "${list}"], "text": "$${a}", "number": 5}) == {
        "all": [1, [1, {"x": "<2>"}]],
        "text": "${a}",
        "number": 5,
    }


def test_what_was_looked_up_is_remembered_with_its_origin() -> None:
    scope = Scope(Layer(origin="one", values={"a": "${b.c}"}), Layer(origin="two", values={"a": 1, "b": {"c": 2}}))
    assert scope.lookup("a") == 2
    assert scope.used == {"a": (2, "one"), "b.c": (2, "two")}


def test_names_are_found_wherever_they_stand() -> None:
    value = {"a": ["${x} ${y:03d}", {"b": "${x.z}"}], "c": "$${no}", "d": 5, "e": "${bad name}"}
    assert names_in(value) == {"x", "y", "x.z", ""}

"""Words that stand alone, as in `-e name=value`."""

from __future__ import annotations

from typing import Any

import pytest

from mikrom_reconcile.core.parsing.yaml_words import parse_scalar


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("true", True), ("FALSE", False), ("7", 7), ("-7", -7), ("1.5", 1.5), ("web", "web"), ("1.2.3.4", "1.2.3.4"),
        ("1.50", "1.50"), ("True", True), ("+5", "+5"), ('"5"', "5"), ("'true'", "true"), ("'", "'"), ("''", ""),
        ("no", "no"), ("012", "012"), ("2026-11-22", "2026-11-22"), ("12:30", "12:30"), ("", ""), ("null", "null"),
        ("999999999999999999", 10**18 - 1), ("1000000000000000000", "1000000000000000000"),
        ("-1000000000000000000", "-1000000000000000000"), ("0" * 30, "0" * 30), ("9" * 30, "9" * 30),
        (f"1{'0' * 400}.0", f"1{'0' * 400}.0"),
    ],
)  # fmt: skip
def test_a_word_is_what_all_programs_take_it_for_else_text(word: str, value: Any) -> None:
    found = parse_scalar(word)
    assert (type(found), found) == (type(value), value)

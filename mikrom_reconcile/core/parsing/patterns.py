"""Host patterns in Ansible's grammar: `kvm:&gen2:!hv03`, `hv[01:10]`, `web*`, `~hv(01|07)`, `all`. Terms without a sign
are added up first, then `&` keeps what both have, then `!` takes away, in whatever order.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from typing import Any

from mikrom_reconcile.times_and_sizes import SPECS

EVERY = frozenset({"all", "*"})
RESERVED = ("all", "ungrouped")  # words with a meaning in patterns: nothing can be called so
_PIECE = re.compile(r"\\.|\[\^?\]?[^\]]*\]|.", re.DOTALL)
_RANGE = re.compile(r"^(.*?)\[([0-9]{1,9}):([0-9]{1,9})\](.*)$")


class PatternError(ValueError):
    """A pattern cannot be read, or nothing is called as a `term` of it is; that is "" if no other could be meant."""

    def __init__(self, message: str, term: str = "") -> None:
        super().__init__(message)
        self.term = term


def select(
    pattern: str, names: Iterable[str], groups: Mapping[str, frozenset[str]], kinds: str = "host and no group"
) -> tuple[str, ...]:
    """The names that `pattern` selects, sorted. `groups` maps a group to the names in it. Raises PatternError for a
    term that is no name, no group and no wildcard of anything; `kinds` says what there is.
    """
    everything = frozenset(names)
    found: dict[str, list[frozenset[str]]] = {"": [], "&": [], "!": []}
    written = [(sign, word) for sign, word in terms(pattern) if sign or word]
    if not written:
        raise PatternError("an empty pattern selects nothing; write all")
    for sign, word in written:
        matching = _matching(word, everything, groups)
        if matching is None:
            raise PatternError(f"{word!r} matches no {kinds}", word)
        found[sign].append(matching)
    added = frozenset().union(*found[""]) if found[""] else everything
    return tuple(sorted(added.intersection(*found["&"]).difference(*found["!"])))


def terms(pattern: str) -> list[tuple[str, str]]:
    """The terms of a pattern, each as its sign and its word, empty ones included."""
    texts, depth = [""], 0
    for piece in _PIECE.findall(pattern):
        if piece in {":", ","} and not depth:
            texts.append("")
        else:
            texts[-1] += piece
            depth += (piece in {"(", "{"}) - (piece in {")", "}"})
    return [(text[0], text[1:]) if text[:1] in {"&", "!"} else ("", text) for text in map(str.strip, texts)]


def _matching(term: str, names: frozenset[str], groups: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """What a word means; None if that is nothing, and not even an empty group."""
    if term in EVERY:
        return names
    if term in names:
        return frozenset({term})
    if term in groups:
        return groups[term]
    tests = _tests(term)
    found = frozenset(name for test in tests for name in names if test(name))
    inside = [groups[group] for test in tests for group in groups if test(group)]
    return found.union(*inside) if found or inside else None


def _tests(term: str) -> list[Callable[[str], Any]]:
    expressions = [term[1:]] if term.startswith("~") else map(translate, _ranged(term))
    try:
        return [re.compile(expression).match for expression in expressions]
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternError(f"{term!r} is not a regular expression: {error}") from None


def _ranged(term: str) -> list[str]:
    """`hv[01:03]` as hv01, hv02, hv03; a term without a range as itself."""
    match = _RANGE.match(term)
    if not match:
        return [term]
    head, first, last, tail = match.groups()
    numbers, rests = range(int(first), int(last) + 1), _ranged(tail)
    if len(numbers) * len(rests) > SPECS.pattern_range:
        raise PatternError(f"{term!r} stands for more than {SPECS.pattern_range} names")
    return [f"{head}{number:0{len(first)}d}{rest}" for number in numbers for rest in rests]

"""Host patterns in Ansible's grammar: `kvm:&gen2:!hv03`, `hv[01:10]`, `web*`, `~hv(01|07)`, `all`.

Terms are joined by `:` or `,`. Those without a sign are added up first, then `&` keeps what both have, then `!`
takes away, in whatever order they are written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

EVERY = frozenset({"all", "*"})
_SPLIT = re.compile(r"[:,](?![^\[]*\])")
_RANGE = re.compile(r"^(.*?)\[([0-9]{1,9}):([0-9]{1,9})\](.*)$")
_MAX_RANGE = 10_000


class PatternError(ValueError):
    """A pattern cannot be read, or a term of it names nothing that exists; `term` is that term."""

    def __init__(self, message: str, term: str) -> None:
        super().__init__(message)
        self.term = term


def select(pattern: str, names: Iterable[str], groups: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """The names that `pattern` selects, sorted. `groups` maps a group to the names in it.

    Raises PatternError for a term that is no name, no group and no wildcard of anything.
    """
    everything = frozenset(names)
    added: frozenset[str] = frozenset()
    kept: list[frozenset[str]] = []
    removed: list[frozenset[str]] = []
    terms = [term.strip() for term in _SPLIT.split(pattern) if term.strip()]
    if not terms:
        raise PatternError("an empty pattern selects nothing; write all", pattern)
    for term in terms:
        found = _matching(term.lstrip("&!"), everything, groups)
        if term[0] == "&":
            kept.append(found)
        elif term[0] == "!":
            removed.append(found)
        else:
            added |= found
    if all(term[0] in "&!" for term in terms):
        added = everything
    return tuple(sorted(added.intersection(*kept).difference(*removed)))


def _matching(term: str, names: frozenset[str], groups: Mapping[str, frozenset[str]]) -> frozenset[str]:
    if term in EVERY:
        return names
    if term in groups:
        return groups[term]
    if term in names:
        return frozenset({term})
    tests = _tests(term)
    found = frozenset(name for test in tests for name in names if test(name))
    inside = [groups[group] for test in tests for group in groups if test(group)]
    if not found and not inside:
        raise PatternError(f"{term!r} matches no host and no group", term)
    return found.union(*inside)


def _tests(term: str) -> list[Callable[[str], bool]]:
    if term.startswith("~"):
        try:
            expression = re.compile(term[1:])
        except re.error as error:
            raise PatternError(f"{term!r} is not a regular expression: {error}", term) from None
        return [lambda name: expression.match(name) is not None]
    return [_glob(part) for part in _ranged(term)]


def _glob(part: str) -> Callable[[str], bool]:
    return lambda name: fnmatchcase(name, part)


def _ranged(term: str) -> list[str]:
    """`hv[01:03]` as hv01, hv02, hv03; a term without a range as itself."""
    match = _RANGE.match(term)
    if not match:
        return [term]
    head, first, last, tail = match.groups()
    numbers, rests = range(int(first), int(last) + 1), _ranged(tail)
    if len(numbers) * len(rests) > _MAX_RANGE:
        raise PatternError(f"{term!r} stands for more than {_MAX_RANGE} names", term)
    return [f"{head}{number:0{len(first)}d}{rest}" for number in numbers for rest in rests]

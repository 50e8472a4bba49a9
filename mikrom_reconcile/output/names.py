"""Many names in few words: `web-[000-004,007]`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)


def grouped(names: Iterable[str]) -> str:
    """The names, those that differ in their last number as ranges; each name is in it once.

    Numbers of different width are kept apart, so that every name can be read off again.
    """
    families: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    plain: list[str] = []
    for name in sorted(set(names)):
        match = _NUMBERED.fullmatch(name)
        if match is None:
            plain.append(name)
        else:
            prefix, number, suffix = match.groups()
            families[prefix, suffix, len(number)].append(int(number))
    parts = plain + [_family(*family, sorted(numbers)) for family, numbers in families.items()]
    return ", ".join(sorted(parts))


def _family(prefix: str, suffix: str, width: int, numbers: list[int]) -> str:
    ranges = [f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in _runs(numbers)]
    inside = ",".join(ranges)
    return f"{prefix}{inside}{suffix}" if len(numbers) == 1 else f"{prefix}[{inside}]{suffix}"


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    first = previous = numbers[0]
    for number in numbers[1:]:
        if number != previous + 1:
            yield first, previous
            first = number
        previous = number
    yield first, previous

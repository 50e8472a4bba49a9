"""Every time, size and count that bounds something, as `times_and_sizes.yml` has them: groups such as `BROKER`."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

_LINE = re.compile(r"  (\w+): ([\d_.]+)(?: ([KMG]iB))?  # (.+)")
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def rows() -> Iterator[tuple[str, str, float, str]]:
    """Group, name, value and reason of each."""
    group = ""
    for line in Path(__file__).with_suffix(".yml").read_text("utf-8").splitlines():
        if found := _LINE.fullmatch(line):
            name, number, unit, reason = found.groups()
            yield group, name, float(number) if "." in number else int(number) * _UNITS[unit], reason
        else:
            group = line.partition(":")[0]


for _group, _rows in groupby(rows(), lambda row: row[0]):
    _fields = [(name, type(value), value) for _, name, value, _ in _rows]
    globals()[_group] = msgspec.defstruct(_group, _fields, frozen=True, kw_only=True)()

if TYPE_CHECKING:

    def __getattr__(group: str) -> Any:
        """A test holds all code to the groups and names that there are."""

"""Images: what specs name, and what hosts have of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from mikrom_reconcile.core.model.observed import Stock
from mikrom_reconcile.core.placement.desired_state import ImageFile
from mikrom_reconcile.output.text import Cell, Document, Style, age, mebibytes, pick, section, table

_HEADER = ("HOST", "IMAGE", "SHA256", "SIZE", "VMS", "USED")
_SHOWN_DIGITS = 12
_MIB = 1 << 20

ByHost = Mapping[str, Sequence[ImageFile]]
"""What each host may need."""


def images_document(named: Sequence[ImageFile], needed: ByHost, stocks: Sequence[Stock]) -> Document:
    """The files that the specs name, and per host what it may need, has, and could not fetch."""
    return {
        "files": named,
        "hosts": [
            pick(stock, "host", "error", "cached", "failed")
            | {"needed": sorted({file.sha256 for file in needed.get(stock.host, ())})}
            for stock in stocks
        ],
    }


def images_text(
    named: Sequence[ImageFile], needed: ByHost, stocks: Sequence[Stock], now: datetime, style: Style
) -> str:
    """A line for each file on each host that has it or may need it, then what could not be fetched."""
    rows = [row for stock in stocks for row in _rows_of(stock, named, needed.get(stock.host, ()), now)]
    shown = table(_HEADER, rows, style) if rows else "No images: the specs name none, and no host has any.\n"
    failed = (f"{stock.host}: {why}" for stock in stocks for why in stock.failed.values())
    return shown + section("Not fetched", failed, style, "red")


def _rows_of(
    stock: Stock, named: Sequence[ImageFile], needed: Sequence[ImageFile], now: datetime
) -> Iterator[tuple[Cell, ...]]:
    names = defaultdict(list)
    for file in dict.fromkeys([*named, *needed]):
        names[file.sha256].append(f"{file.image} {file.part}")
    there = {cached.sha256: cached for cached in stock.cached}
    unknown = "unknown" if stock.error else "missing"
    for sha256 in dict.fromkeys([*(file.sha256 for file in needed), *there]):
        cached = there.get(sha256)
        known = (stock.host, ", ".join(names[sha256]) or "-", sha256[:_SHOWN_DIGITS])
        if cached is None:
            yield *known, "-", "-", (unknown, "yellow")
        else:
            size = mebibytes(-(-cached.size_bytes // _MIB))
            yield *known, size, str(cached.vms), f"{age(cached.last_used_at, now)} ago"

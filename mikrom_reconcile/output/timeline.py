"""A rehearsal for people: what would be up and down when, as text and as a picture."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

import msgspec

from mikrom_reconcile.core.model.plan import group_by
from mikrom_reconcile.output.text import Document, Style, counted, duration, section


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """A VM came up, went down or was removed on a host."""

    at_s: float
    host: str
    vm: str
    fleet: str
    what: Literal["up", "down", "gone"]


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """How a change went: all the time it took, in runs and actions, and what was `left` that nothing was done about."""

    took_s: float
    runs: int
    actions: int
    happenings: tuple[Happening, ...]
    left: tuple[str, ...]

    def most_down(self) -> dict[str, tuple[int, int]]:
        """By fleet: how many of its VMs that had been up were down at a time, and how many there were in all."""
        down, all_vms = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        most = defaultdict[str, int](int)
        for each in self.happenings:
            all_vms[each.fleet].add(each.vm)
            if each.what == "down":
                down[each.fleet].add(each.vm)
            else:
                down[each.fleet].discard(each.vm)
            most[each.fleet] = max(most[each.fleet], len(down[each.fleet]))
        return {fleet: (most[fleet], len(all_vms[fleet])) for fleet in sorted(all_vms)}


def rehearsal_text(found: Rehearsal, style: Style) -> str:
    """When what happens, how long it takes, and how many are down at most."""
    seen = (each for each in found.happenings if each.at_s > 0)
    lines = (f"{each.at_s:8.1f} s  {each.host}  {each.vm}  {each.what}" for each in seen)
    parts = [section("Timeline", lines, style, "cyan"), section("Left", found.left, style, "red")]
    way = f"{counted(found.runs, 'run')}, {counted(found.actions, 'action')}"
    end = f"Converges after {duration(found.took_s)}" if not found.left else "Does not converge"
    most = found.most_down().items()
    peaks = [f"At most {down} of {size} VMs of {fleet} are down at a time." for fleet, (down, size) in most]
    return "\n".join([*filter(None, parts), f"{end}: {way}.", *peaks]) + "\n"


def rehearsal_document(found: Rehearsal) -> Document:
    """All of it."""
    most = {fleet: {"down": down, "size": size} for fleet, (down, size) in found.most_down().items()}
    return {**msgspec.to_builtins(found), "converges": not found.left, "most_down": most}


def rehearsal_svg(found: Rehearsal) -> str:
    """A line for each VM on each host, drawn while it is up."""
    rows = sorted(group_by(found.happenings, lambda each: (each.fleet, each.vm, each.host)).items())
    from mikrom_reconcile.output.pages import rendered  # noqa: PLC0415 - seldom asked for

    return rendered("timeline.svg", found=found, rows=rows, up=_up)


def _up(happenings: list[Happening], end_s: float) -> Iterator[tuple[float, float]]:
    since_s: float | None = None
    for each in happenings:
        if each.what == "up":
            since_s = each.at_s
        elif since_s is not None:
            yield since_s, each.at_s
            since_s = None
    if since_s is not None:
        yield since_s, end_s

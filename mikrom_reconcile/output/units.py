"""Quantities as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

_STEPS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """Such as "12 ms", "1.3 s", "42 s", "5 min 3 s"."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def age(since: datetime, now: datetime) -> str:
    """In the largest unit that fits: "3d", "5h", "12min", "4s"; a clock that was set back gives "0s"."""
    seconds = max(0, int((now - since).total_seconds()))
    unit, size = next((step for step in _STEPS if seconds >= step[1]), _STEPS[-1])
    return f"{seconds // size}{unit}"


def mebibytes(size_mib: int) -> str:
    """Such as "128 MiB", "7.8 GiB"."""
    return f"{size_mib} MiB" if size_mib < 4096 else f"{size_mib / 1024:.1f} GiB"


def counted(number: int, noun: str) -> str:
    """Such as "1 VM", "3 VMs"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(counts: Mapping[str, int]) -> str:
    """Such as "3 to create, 1 to restart"; what is 0 is left out."""
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

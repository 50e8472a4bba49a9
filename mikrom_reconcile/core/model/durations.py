"""Durations as specs write them: a whole number and a unit."""

from __future__ import annotations

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(duration: str) -> float:
    """The seconds of "250ms", "10s", "5m", "1h" or "2d"; anything else was refused when the specs were read."""
    number = duration.rstrip("mshd")
    return int(number) * _UNITS_S[duration[len(number) :]]

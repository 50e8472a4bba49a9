"""Disruption budgets: how many VMs of a fleet may be taken down at a moment, and when one that is closed opens.

Cron lines mean what they mean to Debian's cron: in an hour that comes twice its first time, in one that a change of the
clock leaves out the first moment after it. How long a window lasts is elapsed time.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from cronsim import CronSim, CronSimError

from mikrom_reconcile.core.model.desired import DISRUPTION, Budget, resolve_share, seconds_of
from mikrom_reconcile.core.model.documents import Pointer
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.times_and_sizes import SPECS

_FOREVER = datetime.max.replace(tzinfo=UTC)
_LONGEST_CHANGE = timedelta(hours=2)  # of a clock, by any time zone


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """How many VMs may be down, what decides that, and for how long that is none (None: for good, or not at all)."""

    most: int
    decides: str
    opens_after_s: float | None = None


def allowance(budgets: Sequence[Budget], size: int, now: datetime, reasons: frozenset[str]) -> Allowance:
    """What the smallest of the budgets allows that hold now for any of the reasons; if none does, the usual share."""
    concerned = [budget for budget in budgets if not reasons.isdisjoint(budget.reasons)]
    holding = [budget for budget in concerned if _holds_until(budget, now)]
    if not holding:
        return Allowance(most=resolve_share(DISRUPTION, size), decides=f"{DISRUPTION} of the fleet, at least 1")
    budget = min(holding, key=lambda each: resolve_share(each.max, size))
    most, name = resolve_share(budget.max, size), f"budget {budgets.index(budget) + 1}"
    window = f", {budget.schedule} for {budget.duration} in {budget.timezone}" if budget.schedule else ""
    told = f"{name} (max: {budget.max}{window})"
    if most:
        return Allowance(most=most, decides=told)
    opens_at = _opens_at([each for each in concerned if resolve_share(each.max, size) == 0], now)
    if opens_at is None:
        return Allowance(most=0, decides=f"{told} is closed, with no end in sight")
    local = opens_at.astimezone(ZoneInfo(budget.timezone)).isoformat(timespec="minutes")
    left_s = (opens_at - now).total_seconds()
    return Allowance(most=0, decides=f"{told} is closed and opens at {local}", opens_after_s=left_s)


def largest(budgets: Sequence[Budget], size: int) -> int:
    """The most VMs that may be down at any time, so that batches stay the same when windows begin and end."""
    return max(1, *(resolve_share(share, size) for share in (DISRUPTION, *(budget.max for budget in budgets))))


def _holds_until(budget: Budget, now: datetime) -> datetime | None:
    """The end of the window that `now` is in; None outside of windows."""
    if budget.schedule is None:
        return _FOREVER
    later = (now + _LONGEST_CHANGE).astimezone(ZoneInfo(budget.timezone))
    starts = (start.astimezone(UTC) for start in CronSim(budget.schedule, later, reverse=True))
    start = next((start for start in starts if start <= now), _FOREVER)
    lasts = timedelta(seconds=seconds_of(budget.duration))
    return start + lasts if start <= now < start + lasts else None


def _opens_at(closed: Sequence[Budget], now: datetime) -> datetime | None:
    """When none of these holds any more; None if that never comes."""
    at = now
    for _ in range(SPECS.windows):
        ends = [end for budget in closed if (end := _holds_until(budget, at))]
        if not ends:
            return at
        at = max(ends)
        if at == _FOREVER:
            break
    return None


def budget_mistakes(spec: dict[str, Any]) -> Iterator[tuple[Pointer, str, str]]:
    """What a schema cannot see in the budgets of a fleet: where, what, and what to write."""
    for number, budget in enumerate(spec.get("disruption", {}).get("budgets", ())):
        schedule, zone = budget.get("schedule"), budget.get("timezone", "UTC")
        words = [word for word in ("schedule", "duration", "timezone") if word in budget]
        if words and not {"schedule", "duration"} <= {*words}:
            hint = "write both, or neither for a budget that holds always"
            yield (number,), f"a window has a schedule and a duration, and this has only {' and '.join(words)}", hint
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            yield (number, "timezone"), f"unknown time zone {shown(zone)}", nearest(zone, sorted(available_timezones()))
        try:
            CronSim(schedule or "* * * * *", datetime.min.replace(tzinfo=UTC))
        except CronSimError as error:
            hint = "minute hour day-of-month month day-of-week, such as 0 9 * * mon-fri"
            yield (number, "schedule"), f"{shown(schedule or '')} is no cron line: {str(error).lower()}", hint

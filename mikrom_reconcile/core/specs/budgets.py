"""Disruption budgets: how many VMs of a fleet may be taken down at a moment, and when one that is closed opens. Cron
lines mean what they mean to Debian's cron: in an hour that comes twice its first time, in one that a change of the
clock leaves out the first moment after it. How long a window lasts is elapsed time.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import msgspec
from cronsim import CronSim, CronSimError

from mikrom_reconcile.core.model.desired import DISRUPTION, Budget, resolve_share, seconds_of
from mikrom_reconcile.core.model.documents import Diagnostic, SpecDocument
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.times_and_sizes import SPECS

_NEVER, _FOREVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_LONGEST_CHANGE = timedelta(hours=2)  # of a clock, by any time zone


class Allowance(msgspec.Struct, frozen=True, kw_only=True):
    """How many VMs may be down, what decides that, and for how long that is none (None: for good, or not at all).
    `open_s` is for how long it has not been none, below 0 while it is.
    """

    most: int
    decides: str
    open_s: float
    opens_after_s: float | None = None


def allowance(budgets: Sequence[Budget], size: int, now: datetime, reasons: frozenset[str]) -> Allowance:
    """What the smallest of the budgets allows that hold now for any of the reasons; if none does, the usual share."""
    concerned = [budget for budget in budgets if not reasons.isdisjoint(budget.reasons)]
    closing = [budget for budget in concerned if resolve_share(budget.max, size) == 0]
    open_s = (now - max((_last_end(budget, now) for budget in closing), default=_NEVER)).total_seconds()
    holding = [budget for budget in concerned if _last_end(budget, now) > now]
    budget = min(holding, key=lambda each: resolve_share(each.max, size), default=None)
    if budget is None:
        told = f"{DISRUPTION} of the fleet, at least 1"
        return Allowance(most=resolve_share(DISRUPTION, size), decides=told, open_s=open_s)
    window = f", {budget.schedule} for {budget.duration} in {budget.timezone}" if budget.schedule else ""
    told = f"budget {budgets.index(budget) + 1} (max: {budget.max}{window})"
    if most := resolve_share(budget.max, size):
        return Allowance(most=most, decides=told, open_s=open_s)
    if (opens_at := _opens_at(closing, now)) is None:
        return Allowance(most=0, decides=f"{told} is closed, with no end in sight", open_s=open_s)
    told += f" is closed and opens at {opens_at.astimezone(ZoneInfo(budget.timezone)).isoformat(timespec='minutes')}"
    return Allowance(most=0, decides=told, open_s=open_s, opens_after_s=(opens_at - now).total_seconds())


def largest(budgets: Sequence[Budget], size: int) -> int:
    """The most VMs that may be down at any time, so that batches stay the same when windows begin and end."""
    return max(1, *(resolve_share(share, size) for share in (DISRUPTION, *(budget.max for budget in budgets))))


def _last_end(budget: Budget, now: datetime) -> datetime:
    """The end of the window that has begun last; while the budget holds, it is still to come."""
    if budget.schedule is None:
        return _FOREVER
    later = (now + _LONGEST_CHANGE).astimezone(ZoneInfo(budget.timezone))
    starts = (start.astimezone(UTC) for start in CronSim(budget.schedule, later, reverse=True))
    start = next((start for start in starts if start <= now), _NEVER)
    return start + timedelta(seconds=seconds_of(budget.duration))


def _opens_at(closing: Sequence[Budget], now: datetime) -> datetime | None:
    """When none of these holds any more; None if that never comes."""
    at = now
    for _ in range(SPECS.windows):
        if (end := max(_last_end(budget, at) for budget in closing)) <= at:
            return at
        if end == _FOREVER:
            break
        at = end
    return None


def budget_mistakes(document: SpecDocument, _: object) -> Iterator[Diagnostic]:
    """What a schema cannot see in the budgets of a fleet."""
    for number, budget in enumerate(document.body["spec"].get("disruption", {}).get("budgets", ())):
        at = ("spec", "disruption", "budgets", number)
        schedule, zone = budget.get("schedule"), budget.get("timezone", "UTC")
        words = [word for word in ("schedule", "duration", "timezone") if word in budget]
        if words and not {"schedule", "duration"} <= {*words}:
            message = f"a window has a schedule and a duration, and this has only {' and '.join(words)}"
            yield Diagnostic(document, at, message, "write both, or neither for a budget that holds always")
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            hint = nearest(zone, sorted(available_timezones()))
            yield Diagnostic(document, (*at, "timezone"), f"unknown time zone {shown(zone)}", hint)
        try:
            CronSim(schedule or "* * * * *", _NEVER)
        except CronSimError as error:
            hint = "minute hour day-of-month month day-of-week, such as 0 9 * * mon-fri"
            message = f"{shown(schedule or '')} is no cron line: {str(error).lower()}"
            yield Diagnostic(document, (*at, "schedule"), message, hint)

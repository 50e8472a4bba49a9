"""Time, as whatever waits or dates something asks for it."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The real time. Tests have a subclass that holds it still."""

    def now(self) -> datetime:
        """Aware UTC, for people; it may jump."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that only ever grow, for deadlines and durations."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

"""A task under way as whoever inspects a worker sees it: Flower's page of a worker, `celery inspect active`.

Events and logs show what a message says of its arguments; an inspection would show the arguments themselves.
"""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request


class QuietRequest(Request):  # type: ignore[misc]  # Celery has no types
    """Celery's, without the arguments."""

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - Celery's signature
        """What is told about it: never more than `argsrepr` and `kwargsrepr`."""
        del safe
        told: dict[str, Any] = super().info(safe=True)
        return told

"""Removes images that nobody uses any more, and taps that leaked.

An image goes a day after the last VM that names it, or after somebody fetched it in advance and no VM came. While any
record cannot be read, no image goes: the VM behind it may need all of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.images import ImageCache, image_uses
from mikrom_reconcile.host.resources.networks import Networks
from mikrom_reconcile.limits import IMAGES

_log = logging.getLogger(__name__)


class GarbageCollector:
    """What no VM of one host uses any more."""

    def __init__(self, host: str, images: ImageCache, records: Records) -> None:
        self._host = host
        self._images = images
        self._records = records
        self._run_at = 0.0

    def run(self) -> None:
        """Collect, once an hour at most. What is in the way stands in the log."""
        if time.monotonic() < self._run_at:
            return
        self._run_at = time.monotonic() + IMAGES.sweep_interval_s
        self._collect("taps that no record wants, of", self._taps)
        self._collect("images that nobody used:", self._unused_images)

    def _collect(self, what: str, collect: Callable[[], tuple[str, ...]]) -> None:
        try:
            removed = collect()
        except (MikromError, OSError) as error:
            _log.warning("cannot remove %s %s", what, error, extra={"host": self._host})
            return
        if removed:
            _log.info("removed %s %s", what, ", ".join(removed), extra={"host": self._host})

    def _taps(self) -> tuple[str, ...]:
        """A tap outlives its VM if somebody removed the VM's record, and its place in the spec by a restart."""
        networks = Networks(self._records.state_dir.resolve())
        return networks.sweep(give_up_at=time.monotonic() + IMAGES.sweep_wait_s)

    def _unused_images(self) -> tuple[str, ...]:
        if next(self._images.cached(), None) is None:
            return ()
        uses, is_whole = image_uses(self._records)
        return self._images.sweep(frozenset(uses)) if is_whole else ()

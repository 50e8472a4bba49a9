"""The images of this host as others ask for them: what is there, who uses it, what is to come, and what may go.

A file goes a day after the last VM that names it, or after somebody fetched it in advance and no VM came. While any
record cannot be read, nothing goes: the VM behind it may need all of it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from mikrom_reconcile.core.model.devices import PinnedFile
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.stock import CachedFile, Stock
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.images import Images
from mikrom_reconcile.host.resources.networks import Networks
from mikrom_reconcile.limits import IMAGES

_log = logging.getLogger(__name__)


class ImageStock:
    """The images of one host, with the records of the VMs that use them."""

    def __init__(self, host: str, images: Images, records: Records) -> None:
        self._host = host
        self._images = images
        self._records = records
        self._sweep_at = 0.0

    def told(self, files: Iterable[PinnedFile], *, deadline_s: float) -> Stock:
        """What is cached once `files` were fetched; one that cannot be had keeps no other away. Raises SetupError."""
        give_up_at = time.monotonic() + deadline_s
        failed = {file.sha256: why for file in files if (why := self._fetched(file, give_up_at))}
        uses, _ = self._uses()
        return Stock(
            host=self._host,
            failed=failed,
            cached=tuple(
                CachedFile(
                    sha256=sha256, size_bytes=size, vms=uses[sha256], last_used_at=datetime.fromtimestamp(used_s, UTC)
                )
                for sha256, size, used_s in self._images.cached()
                if not sha256.endswith(".part")
            ),
        )

    def sweep(self) -> None:
        """Remove images that nobody used for a day, and taps that leaked; once an hour at most. What is in the way is
        told by the log.
        """
        now = time.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + IMAGES.sweep_interval_s
        self._sweep_taps()
        try:
            if next(self._images.cached(), None) is None:
                return
            uses, is_whole = self._uses()
            removed = self._images.sweep(frozenset(uses)) if is_whole else ()
        except (MikromError, OSError) as error:
            _log.warning("cannot sweep images: %s", error, extra={"host": self._host})
            return
        if removed:
            _log.info("removed images that nobody used: %s", ", ".join(removed), extra={"host": self._host})

    def _sweep_taps(self) -> None:
        """A tap outlives its VM if somebody removed the VM's record, and its place in the spec by a restart."""
        try:
            give_up_at = time.monotonic() + IMAGES.sweep_wait_s
            leaked = Networks(self._records.state_dir.resolve()).sweep(give_up_at=give_up_at)
        except (MikromError, OSError) as error:
            _log.warning("cannot sweep taps: %s", error, extra={"host": self._host})
            return
        if leaked:
            _log.info("removed taps that no record wants, of %s", ", ".join(leaked), extra={"host": self._host})

    def _fetched(self, file: PinnedFile, give_up_at: float) -> str:
        """Why it could not be had, "" if it is there."""
        try:
            self._images.fetched(file, give_up_at=give_up_at)
        except (MikromError, OSError) as error:
            return str(error)
        return ""

    def _uses(self) -> tuple[Counter[str], bool]:
        """How many VMs name each digest, and whether every record could be read."""
        found, is_whole = Counter[str](), True
        for record in self._records.list():
            time.sleep(0)  # lets other greenlets run
            if isinstance(record, VMRecord):
                boot = record.spec.boot
                found.update({file.sha256 for file in boot.files().values()} if boot else ())
            else:
                is_whole = False
        return found, is_whole

"""A folder for the files of a benchmark, on the disk that a real run would use."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mikrom_reconcile.settings import load


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder beside the state folder.

    Remove nothing in it between rounds: ext4 without a journal hands out inodes that were freed in the last minutes
    only after a long search, which would be measured instead.
    """
    beside = load().state_dir.parent
    beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="mikrom-bench-", dir=beside))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)

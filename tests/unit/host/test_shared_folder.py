"""Many who wait for one folder to be safe share the waiting, and none of them is told too early."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mikrom_reconcile.system import files
from mikrom_reconcile.system.files import SharedFolder

WRITERS = 20


def test_each_waits_for_a_sync_that_began_after_it_asked_and_most_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[tuple[float, float]] = []

    def slow_sync(folder: Path) -> None:
        assert folder == tmp_path
        began_s = time.monotonic()
        time.sleep(0.05)
        syncs.append((began_s, time.monotonic()))

    monkeypatch.setattr(files, "sync_folder", slow_sync)
    folder = SharedFolder(tmp_path)

    def writer(number: int) -> tuple[float, float]:
        time.sleep(number * 0.004)
        asked_s = time.monotonic()
        folder.sync()
        return asked_s, time.monotonic()

    with ThreadPoolExecutor(WRITERS) as pool:
        waits = list(pool.map(writer, range(WRITERS)))
    for asked_s, told_s in waits:
        assert any(asked_s <= began_s and ended_s <= told_s for began_s, ended_s in syncs)
    assert len(syncs) < WRITERS / 2


def test_a_sync_that_failed_counts_for_nobody(tmp_path: Path) -> None:
    folder = SharedFolder(tmp_path / "later")
    with pytest.raises(FileNotFoundError):
        folder.sync()
    (tmp_path / "later").mkdir()
    folder.sync()

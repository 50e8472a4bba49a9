"""One supervised service: its log."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mikrom_reconcile.services import supervise
from tests.fleet import wait_until


def test_a_log_never_takes_more_than_twice_its_limit_and_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LARGEST_LOG_BYTES", 10_000)
    log = tmp_path / "log" / "talker.log"
    program = (
        "import itertools, time\nfor n in itertools.count(): print(f'line {n:06}', flush=True); time.sleep(0.0001)"
    )
    child = supervise.Child("talker", [sys.executable, "-c", program], os.environ, log=log)
    older = log.with_name("talker.log.1")
    largest = 0

    def has_begun_anew() -> bool:
        nonlocal largest
        child.look()
        largest = max(largest, log.stat().st_size)
        return older.exists() and older.read_text()[:11] > "line 002000"

    try:
        wait_until(has_begun_anew, "the log to begin anew some times")
    finally:
        supervise.end_all([child], within_s=1)
    assert largest < 10 * supervise.LARGEST_LOG_BYTES
    assert {path.stat().st_mode & 0o777 for path in (log, older)} == {0o600}
    assert "\0" not in log.read_text(), "a hole where the earlier part was"

"""A Redis that is full refuses and is told; nothing has to be mended when it has room again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import ROOT, Fleet

pytestmark = pytest.mark.redis

SPECS = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 2, template: {image: hello}}\n"


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    (own_environment / "web.yml").write_text(SPECS)
    try:
        yield fleet
    finally:
        fleet.close()


def mikrom(fleet: Fleet, *words: str, specs: bool = True) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mikrom_reconcile", *words, *([f"{fleet.folder}/web.yml"] if specs else [])]
    return subprocess.run(
        argv, env=fleet.environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )


def test_a_full_redis_is_told_and_with_room_again_all_goes_on(fleet: Fleet) -> None:
    workers = [
        fleet.worker("host", app="mikrom_reconcile.celery_app"),
        fleet.worker("control", pool="threads", app="mikrom_reconcile.celery_app", MIKROM_SPECS="/unused"),
    ]
    fleet.redis.config_set("maxmemory", "1")
    refused = mikrom(fleet, "plan")
    assert refused.returncode == 1
    assert "command not allowed when used memory > 'maxmemory'" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "broken  broker" in (told := mikrom(fleet, "doctor", specs=False)).stdout, told.stdout
    assert told.returncode == 1
    fleet.redis.config_set("maxmemory", "512mb")
    assert mikrom(fleet, "apply", "--yes").returncode == 0
    assert [worker.poll() for worker in workers] == [None, None]

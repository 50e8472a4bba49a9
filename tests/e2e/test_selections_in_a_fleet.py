"""Selections that match nothing are refused by a control worker as they are without one: nothing is done, 64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import WEB
from tests.fleet import ROOT, Fleet

pytestmark = pytest.mark.redis

BY_HAND = "from mikrom_reconcile.celery_app import app; print(app.tasks['mikrom.create_vm'].delay('web-02').get(60))"


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    specs = fleet.folder / "specs"
    specs.mkdir()
    (specs / "web.yml").write_text((WEB % 3).replace("{name: web}", "{name: web, tags: [front]}"))
    fleet.worker("host")
    fleet.worker("control", pool="threads", MIKROM_SPECS=str(specs))
    try:
        yield fleet
    finally:
        fleet.close()


def python(fleet: Fleet, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=fleet.environment(), capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_control_worker_refuses_what_matches_nothing(fleet: Fleet) -> None:
    specs, cli = str(fleet.folder / "specs"), ("-m", "mikrom_reconcile")
    saved = str(fleet.folder / "plan.json")
    python(fleet, *cli, "apply", specs, "--yes")
    for words, told in {
        ("destroy", "--skip-tags", "fornt"): "error: --skip-tags: no fleet has the tag 'fornt'; did you mean front?",
        ("destroy", "--skip-tags", "front"): "error: --tags and --skip-tags leave no fleet",
        ("destroy", "--limit", "web:!all"): "error: --limit: 'web:!all' leaves no VM",
        ("apply", "--limit", "~web-0[0-9]{3}"): "error: --limit: '~web-0[0-9]{3}' matches no VM, host, group or fleet",
        ("apply", "--no-wait", "-e", "mem=5"): "error: -e: nothing in these specs looks 'mem' up",
        ("delete", "web-7"): "error: no host has a VM 'web-7'; did you mean web-00",
    }.items():
        where = [] if words[0] == "delete" else [specs]
        assert told in python(fleet, *cli, *words, *where, "--yes", code=64)
    assert "matches no VM" in python(fleet, *cli, "plan", specs, "--limit", "wbe", "--out", saved, code=64)
    assert not Path(saved).exists()
    by_hand = python(fleet, "-c", BY_HAND)
    assert "--limit: 'web-02' matches no VM, host, group or fleet; did you mean web-002?" in by_hand
    assert "'exit_code': 64" in by_hand
    assert "3 VMs as specified" in python(fleet, *cli, "plan", specs)

"""What the tests of the command line and of fleets share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mikrom_reconcile.dispatch.app import FleetApp, make_app
from tests.command import PROJECT, WEB, Mikrom, Run
from tests.fleet import Fleet


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    """A private Redis, and whatever is started beside it, for one test."""
    fleet = Fleet(own_environment)
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def app(fleet: Fleet) -> Iterator[FleetApp]:
    """The Celery app of the fleet, as its clients have it."""
    app = make_app(fleet.settings())
    yield app
    app.close()


@pytest.fixture
def folder(own_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `specs/`, from which three VMs follow."""
    monkeypatch.setenv("MIKROM_DRIVER", "simulated")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    (own_environment / "specs").mkdir()
    (own_environment / "specs" / "web.yml").write_text(WEB % 3)
    return own_environment


@pytest.fixture
def mikrom(folder: Path) -> Mikrom:
    def run(*words: str, code: int | None = 0, program: Sequence[str] = ("-m", "mikrom_reconcile")) -> Run:
        argv = [sys.executable, *program, *words]
        done = subprocess.run(
            argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done

    return run

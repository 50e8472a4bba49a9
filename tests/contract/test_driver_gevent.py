"""Everything that the drivers do, once more in greenlets: the same tests in a process that is patched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
PATCHED_PYTEST = (
    "from gevent import monkey; monkey.patch_all(); import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
)


def passes_in_greenlets(*arguments: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PATCHED_PYTEST, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
        cwd=FOLDER.parent.parent,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert " skipped" not in run.stdout


def test_the_simulated_driver_does_the_same_in_greenlets() -> None:
    passes_in_greenlets(str(FOLDER / "test_driver.py"), "-k", "simulated")


@pytest.mark.soak
@pytest.mark.needs("qemu-system-x86_64")
def test_the_qemu_driver_does_the_same_in_greenlets() -> None:
    passes_in_greenlets(str(FOLDER / "test_driver.py"), "-k", "qemu")


@pytest.mark.kvm
def test_the_real_driver_does_the_same_in_greenlets() -> None:
    files = (str(FOLDER / "test_driver.py"), str(FOLDER / "test_driver_firecracker.py"))
    passes_in_greenlets(*files, "-m", "kvm and not jail")


@pytest.mark.soak
@pytest.mark.kvm
@pytest.mark.jail
def test_the_jailed_driver_does_the_same_in_greenlets() -> None:
    passes_in_greenlets(str(FOLDER / "test_driver.py"), "-m", "jail")

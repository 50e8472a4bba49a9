"""Everything that a host does with orders, once more in greenlets: the same tests in a process that is patched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PATCHED_PYTEST = """from gevent import monkey; monkey.patch_all()
import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"""
FOLDER = Path(__file__).parent


@pytest.mark.parametrize(("file", "chosen"), [("test_host.py", ""), ("test_host_killed.py", "simulated")])
def test_in_greenlets_it_is_the_same(file: str, chosen: str) -> None:
    plain = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen]
    run = subprocess.run(
        [sys.executable, "-c", PATCHED_PYTEST, str(FOLDER / file), *plain],
        cwd=FOLDER.parent.parent,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout

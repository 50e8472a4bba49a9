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


@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("test_host.py", "not qemu and not jailed"),
        ("test_host_killed.py", "simulated"),
        ("test_supervise.py", "not qemu and not jailed"),
        pytest.param("test_host.py", "jailed", marks=pytest.mark.soak),
        pytest.param("test_supervise.py", "jailed", marks=pytest.mark.soak),
    ],
)
def test_in_greenlets_it_is_the_same(file: str, chosen: str) -> None:
    plain = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen]
    run = subprocess.run(
        [sys.executable, "-c", PATCHED_PYTEST, str(FOLDER / file), *plain],
        cwd=FOLDER.parent.parent,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


LIMITED = """from gevent import monkey; monkey.patch_all()
import sys
from pathlib import Path
import gevent
from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.system.time_limits import Clock
from tests.fakes import HOST, order

class SlowDriver(SimulatedDriver):
    def start(self, record, *, deadline_s):
        super().start(record, deadline_s=deadline_s)
        gevent.sleep(30)  # it runs, and whoever started it does not come back

state = Path(sys.argv[1])
driver = SlowDriver(state)
host = HostAgent(HOST, driver=driver, records=Records(state), clock=Clock())
try:
    with gevent.Timeout(0.2):
        host.execute(order("create", "web-000"))
except gevent.Timeout:
    print("passed through")
killed = gevent.spawn(host.execute, order("create", "web-001"))
gevent.sleep(0.2)
killed.kill()
print("left:", driver.strays(()))
host = HostAgent(HOST, driver=SimulatedDriver(state), records=Records(state), clock=Clock())
print([host.execute(order("create", vm)).result for vm in ("web-000", "web-001")])
"""


def test_a_time_limit_and_the_end_of_a_greenlet_pass_through_and_leave_no_vmm(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    run = subprocess.run(command, cwd=FOLDER.parent.parent, capture_output=True, text=True, timeout=250, check=False)
    assert run.stdout.splitlines() == ["passed through", "left: ()", "['done', 'done']"], run.stderr

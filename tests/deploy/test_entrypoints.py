"""`run_worker.py` and `run_beat.py`, as the predecessor's supervisors start them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM

import pytest

from tests.fleet import ROOT, Fleet, wait_until

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


def test_two_workers_and_a_beat_make_what_the_specs_want_and_end_when_told(fleet: Fleet) -> None:
    own = {"MIKROM_SPECS": f"{fleet.folder}/web.yml", "MIKROM_RECONCILE_INTERVAL": "1"}
    host = fleet.run("host-localhost", [sys.executable, "run_worker.py"])
    control = fleet.run("control-localhost", [sys.executable, "run_worker.py"], MIKROM_WORKER_ROLE="control", **own)
    beat = fleet.run("beat-localhost", [sys.executable, "run_beat.py"], **own)
    fleet.wait_for("host:localhost", host)
    fleet.wait_for(f"control:localhost:{control.pid}", control)
    wait_until(lambda: "2 create done" in fleet.log("control:localhost"), "a run by Beat")
    for process in (beat, control, host):
        process.send_signal(SIGTERM)
    assert [process.wait(timeout=240) for process in (beat, control, host)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("script", "variables", "told"),
    [
        ("run_worker.py", {"MIKROM_BROKER_URL": ""}, "run_worker.py: MIKROM_BROKER_URL is not set"),
        ("run_worker.py", {"MIKROM_WORKER_ROLE": "both"}, "MIKROM_WORKER_ROLE='both': must be one of host, control"),
        ("run_worker.py", {"MIKROM_WORKER_ROLE": "control"}, "run_worker.py: MIKROM_SPECS is not set"),
        ("run_beat.py", {}, "run_beat.py: MIKROM_SPECS is not set"),
    ],
)
def test_a_script_says_in_one_line_what_it_does_not_start_without(
    own_environment: Path, script: str, variables: dict[str, str], told: str
) -> None:
    environment = Fleet.environment_of(own_environment, "redis://nobody-is-asked", **variables)
    ended = subprocess.run(
        [sys.executable, script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1

"""The program in docs/CELERY_USAGE.md does what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet import ROOT, Fleet

TEXT = (ROOT / "docs/CELERY_USAGE.md").read_text(encoding="utf-8")
SPECS = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 3
  template: {image: hello}
"""


@pytest.mark.redis
def test_tasks_are_called_as_the_guide_says(own_environment: Path) -> None:
    [(program, printed)] = re.findall(r"```python\n(.*?)```.*?```text\n(.*?)```", TEXT, re.DOTALL)
    (own_environment / "web.yml").write_text(SPECS)
    fleet = Fleet(own_environment)
    try:
        worker = [sys.executable, "run_worker.py"]
        host = fleet.run("host-localhost", worker)
        control = fleet.run(
            "control-localhost", worker, MIKROM_WORKER_ROLE="control", MIKROM_SPECS=str(own_environment / "web.yml")
        )
        fleet.wait_for("host:localhost", host)
        fleet.wait_for(f"control:localhost:{control.pid}", control)
        done = subprocess.run(
            [sys.executable, "-c", program], env=fleet.environment(), cwd=ROOT, capture_output=True, text=True,
            check=False, timeout=240,
        )  # fmt: skip
        kept_s = [fleet.redis.ttl(key) for key in fleet.redis.scan_iter(match="celery-task-meta-*")]
    finally:
        fleet.close()
    assert re.sub(r"task-\w+", "task-…", done.stdout) == printed, done.stderr
    assert len(kept_s) == 6
    assert all(3500 < left_s <= 3600 for left_s in kept_s), "results are kept for one hour"

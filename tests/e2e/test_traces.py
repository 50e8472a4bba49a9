"""Spans from a run to its actions on the hosts, and that nobody pays for them who did not ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.plan import RunRequest
from tests.fleet import ROOT, Fleet

pytestmark = pytest.mark.redis

TRACED = {"OTEL_TRACES_EXPORTER": "console", "OTEL_BSP_SCHEDULE_DELAY": "60000"}  # told when the workers end


def request(project: str, replicas: int) -> RunRequest:
    head = f"apiVersion: mikrom/v1\nkind: %s\nmetadata: {{name: {project}}}\n"
    text = f"{head % 'Project'}---\n{head % 'Fleet'}spec: {{replicas: {replicas}, template: {{image: hello}}}}\n"
    tree = SourceTree(revision="r1", files=(SourceFile(path="fleet.yml", text=text),))
    return RunRequest(run_id=f"run-{project}", origin="a test", tree=tree, forks=32, timeout_s=40)


def spans(fleet: Fleet, owner: str) -> list[dict[str, Any]]:
    lines = [line for line in fleet.log(owner).splitlines() if line.startswith('{"name"')]
    return [json.loads(line) for line in lines]


def test_actions_that_run_at_once_keep_the_trace_of_their_run(fleet: Fleet) -> None:
    host = fleet.worker("host", MIKROM_TEST_BOOT_S="0.3", MIKROM_TEST_FAILURES="1", **TRACED)
    worker = fleet.worker("control", pool="threads", **TRACED)
    engine = wiring.remote_engine(fleet.settings(), fleet.url)
    with ThreadPoolExecutor() as pool:
        for told in [pool.submit(engine.apply, request(p, 10), None, progress=lambda _: None) for p in ("a", "b")]:
            assert {outcome.result for outcome in told.result().outcomes} == {"done"}
    for process in (host, worker):
        process.terminate()
        assert process.wait(timeout=240) == 0
    control, actions = spans(fleet, "control:localhost"), spans(fleet, "host:localhost")
    runs = {span["attributes"]["mikrom.run"]: span["context"] for span in control if span["name"] == "run"}
    dispatches = {span["context"]["trace_id"]: span for span in control if span["name"] == "dispatch"}
    assert len({run["trace_id"] for run in runs.values()}) == 2
    for action in actions:
        run = runs[action["attributes"]["mikrom.run"]]
        assert action["context"]["trace_id"] == run["trace_id"]
        assert action["parent_id"] == dispatches[run["trace_id"]]["context"]["span_id"]
        assert dispatches[run["trace_id"]]["parent_id"] == run["span_id"]
    assert {span["name"] for span in control} == {"run", "plan", "observe", "dispatch"}
    assert Counter((span["name"], span["attributes"]["mikrom.result"]) for span in actions) == {
        ("create VM", "done"): 20, ("create VM", "failed_temporary"): 1,
    }  # fmt: skip
    (failed,) = [span for span in actions if span["status"]["status_code"] == "ERROR"]
    assert "no memory" in failed["status"]["description"]
    assert len({span["attributes"]["mikrom.vm"] for span in actions}) == 20


def python(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program], env=kept | variables, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_who_does_not_ask_imports_and_keeps_nothing() -> None:
    done = python(
        "import sys\nfrom mikrom_reconcile import traces\ntraces.set_up('host')\n"
        "with traces.span('run') as ended:\n    ended('done', None)\n"
        "assert traces.carried() == {}\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("exporter", ["otlp", "smoke-signals"])
def test_what_is_missing_is_a_warning_and_no_end(exporter: str) -> None:
    """The OTLP exporter is hidden here, as where the extra is not installed."""
    done = python(
        "import sys\nsys.modules['opentelemetry.exporter.otlp.proto.http.trace_exporter'] = None\n"
        "from mikrom_reconcile import traces\ntraces.set_up('host')\nwith traces.span('run'):\n    pass",
        OTEL_TRACES_EXPORTER=exporter,
    )
    assert done.returncode == 0
    assert "no traces, though OTEL_* asks for them" in done.stderr

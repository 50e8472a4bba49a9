"""What a control worker tells Prometheus, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.output.pages import policy
from tests.fleet import KEYS, ROOT, Fleet

pytestmark = pytest.mark.redis

DASHBOARD = json.loads((ROOT / "deploy/grafana/mikrom.json").read_text())
WEB = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: %d, template: {image: hello}}\n"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Control:
    """A control worker that answers scrapes, beside a host with two VMs and one that is dark."""

    def __init__(self, fleet: Fleet, app: FleetApp) -> None:
        self.port = free_port()
        self.specs = fleet.folder / "web.yml"
        self.specs.write_text(WEB % 2)
        self._app = app
        self.folder, self.redis = fleet.folder, fleet.redis
        self.host = fleet.worker("host", MIKROM_TEST_BOOT_S="0")
        fleet.worker("control", pool="threads", MIKROM_SPECS=str(self.specs), MIKROM_METRICS=str(self.port))
        fleet.redis.set(KEYS.known("hv09"), b"")
        app.send_task("mikrom.console", queue=KEYS.host_queue("hv09"), ignore_result=True)

    def tick(self) -> str:
        return self.done("mikrom.reconcile")

    def done(self, task: str, *words: str) -> str:
        return str(self._app.send_task(task, words, queue=KEYS.queue).get(timeout=240)["done"])


@pytest.fixture
def control(fleet: Fleet, app: FleetApp) -> Control:
    return Control(fleet, app)


def test_a_control_worker_counts_what_it_does(control: Control) -> None:
    assert control.tick() == "2 create done"
    told = scrape(control.port)
    assert told["mikrom_run_duration_seconds_count", (("origin", "beat"), ("result", "converged"))] == 1
    assert told["mikrom_actions_total", (("result", "done"), ("verb", "create"))] == 2
    assert told["mikrom_action_duration_seconds_count", (("verb", "create"),)] == 2
    assert not [name for name, _ in told if name == "mikrom_drift_total"], "they were asked for"
    project = (("project", "default"),)
    assert told["mikrom_convergence_lag_seconds", project] == 0
    assert (
        told["mikrom_last_run_timestamp_seconds", project] == told["mikrom_last_converged_timestamp_seconds", project]
    )


def test_drift_is_what_nobody_asked_for(control: Control) -> None:
    def drift() -> dict[tuple[str, ...], float]:
        found = [(dict(labels), value) for (name, labels), value in scrape(control.port).items() if "drift_t" in name]
        return {(labels["rule"], labels["rule_id"], labels["kind"]): value for labels, value in found}

    assert control.tick() == "2 create done"
    control.specs.write_text(WEB % 4)
    assert control.tick() == "2 create done"
    control.specs.write_text((WEB % 3).replace("hello}", "hello, boot_args: more}"))
    assert control.tick() == "1 delete done, 3 restart done"
    assert control.done("mikrom.delete_vm", "web-000").startswith("1 delete done")
    assert control.tick() == "1 create done"
    assert drift() == {}, "people asked for it"
    shutil.rmtree(control.folder / "state" / "vms" / "web-001")
    assert control.tick() in {"1 create done", "1 update done"}  # its record was kept twice
    assert drift() in (
        {("missing", "missing", "create"): 1},
        {("updating", "needs-update", "update"): 1},
    )


def test_a_control_worker_shows_the_vms_of_the_fleet_and_what_is_promised(control: Control) -> None:
    control.tick()

    def vms() -> dict[str, float]:
        own = {"project": "default", "fleet": "web", "host": "localhost"}.items()
        told = scrape(control.port)
        found = [(dict(labels), value) for (name, labels), value in told.items() if name == "mikrom_vms"]
        return {labels["phase"]: value for labels, value in found if own <= labels.items()}

    host = (("host", "localhost"),)
    assert vms() == {"running": 2}
    with urllib.request.urlopen(f"http://127.0.0.1:{control.port}/", timeout=60) as answer:
        page = answer.read().decode()
        assert policy() in answer.headers["Content-Security-Policy"]
    assert "2 hosts, 2 VMs, 2 running, 0 amiss. Nothing to change: 2 VMs as specified." in page
    assert "<li>hv09: " in page
    assert "Scheduled runs use" in page
    assert page.count("web-001") == 2, "created in a run, and there"
    told = scrape(control.port)
    assert told["mikrom_host_memory_promised_bytes", host] == 2 * 128 << 20
    assert told["mikrom_host_memory_bytes", host] > 0
    control.host.kill()
    control.host.wait()
    control.redis.delete(KEYS.heartbeat("host:localhost"))
    assert vms() == {"unknown": 2}


def test_a_control_worker_looks_at_what_all_have_in_common(control: Control) -> None:
    control.tick()
    told = scrape(control.port)
    assert told["mikrom_redis_up", ()] == 1
    assert {kind: told["mikrom_workers", (("kind", kind),)] for kind in ("host", "control", "beat")} == {
        "host": 1, "control": 1, "beat": 0,
    }  # fmt: skip
    assert told["mikrom_dark_hosts", ()] == 1
    dark = (("queue", KEYS.host_queue("hv09")),)
    assert told["mikrom_queue_messages", dark] == 1
    assert 0 < told["mikrom_queue_age_seconds", dark] < 60
    assert told["mikrom_queue_messages", (("queue", KEYS.queue),)] == 0
    assert told["mikrom_source_broken", ()] == 0
    assert told["mikrom_source_age_seconds", ()] < 60
    control.specs.write_text("kind: [")
    assert "the source is broken" in control.tick()
    broken = scrape(control.port)
    assert broken["mikrom_source_broken", ()] == 1
    [blamed] = [dict(labels)["revision"] for name, labels in broken if name == "mikrom_source_broken_revision_info"]
    assert blamed.startswith("files:")


def test_the_dashboard_asks_for_what_there_is_and_shows_all_of_it(control: Control) -> None:
    control.tick()
    shutil.rmtree(control.folder / "state" / "vms" / "web-001")
    control.tick()
    control.redis.set(KEYS.next_run, "1.5")
    names = {name for name, _ in scrape(control.port)}
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    asked = {name for expression in expressions for name in metrics_in(expression)}
    assert len(expressions) > 10
    assert asked - names == set()
    assert families(names) == families(asked)


def test_a_project_that_is_not_as_specified_lags(fleet: Fleet, app: FleetApp) -> None:
    specs, port = fleet.folder / "web.yml", free_port()
    specs.write_text(WEB % 1)
    fleet.worker("host", MIKROM_TEST_BOOT_S="0", MIKROM_TEST_FAILURES="3")
    fleet.worker("control", pool="threads", MIKROM_SPECS=str(specs), MIKROM_METRICS=f"127.0.0.1:{port}")
    app.send_task("mikrom.reconcile", queue=KEYS.queue).get(timeout=240)
    told = scrape(port)
    assert told["mikrom_run_duration_seconds_count", (("origin", "beat"), ("result", "failed"))] == 1
    assert told["mikrom_actions_total", (("result", "failed_temporary"), ("verb", "create"))] == 1
    assert told["mikrom_convergence_lag_seconds", (("project", "default"),)] > 0
    assert "mikrom_last_converged_timestamp_seconds" not in {name for name, _ in told}
    fleet.stop_redis()
    told = scrape(port)
    assert told["mikrom_redis_up", ()] == 0
    assert told["mikrom_run_duration_seconds_count", (("origin", "beat"), ("result", "failed"))] == 1


def test_nothing_listens_unless_it_is_asked_to_and_only_on_loopback_then(fleet: Fleet) -> None:
    quiet = fleet.worker("control", pool="threads")
    port = free_port()
    talking = fleet.worker("control", pool="threads", MIKROM_METRICS=str(port))
    listening = Path(f"/proc/{quiet.pid}/net/tcp").read_text() + Path(f"/proc/{quiet.pid}/net/tcp6").read_text()
    (line,) = [line for line in listening.splitlines() if f":{port:04X} 0" in line and " 0A " in line]
    assert line.split()[1] == f"0100007F:{port:04X}"
    sockets = {str(fd.readlink()) for fd in Path(f"/proc/{quiet.pid}/fd").iterdir()}
    inodes = {row.split()[9] for row in listening.splitlines() if " 0A " in row}
    assert not {f"socket:[{inode}]" for inode in inodes} & sockets
    second = fleet.run(
        "second",
        [sys.executable, "run_worker.py"],
        MIKROM_WORKER_ROLE="control",
        MIKROM_METRICS=str(port),
        MIKROM_SPECS="/specs",
    )
    assert second.wait(timeout=240) != 0
    assert f"MIKROM_METRICS=127.0.0.1:{port}: Address already in use" in fleet.log("second")
    assert talking.poll() is None


@pytest.mark.parametrize("wrong", ["0", "metrics", "127.0.0.1", "127.0.0.1:99999"])
def test_an_address_that_means_nothing_is_refused(fleet: Fleet, wrong: str) -> None:
    environment = fleet.environment(MIKROM_METRICS=wrong)
    argv = [sys.executable, "-m", "mikrom_reconcile", "doctor"]
    refused = subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
    assert refused.returncode == 64
    assert "MIKROM_METRICS=" in refused.stderr


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bmikrom_\w+", expression))


def families(names: set[str]) -> set[str]:
    return {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in names}

"""A fleet on three hosts: workers with state folders and network namespaces of their own, over real microVMs.

What is judged is /proc. The larger number of microVMs is for `make soak`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import Fleet, wait_until
from tests.watch import VMM, Watch

pytestmark = [pytest.mark.kvm, pytest.mark.redis]

HOSTS = ("hv01", "hv02", "hv03")
RACKS = {"hv01": "a", "hv02": "b", "hv03": "b"}
INTERVAL_S = 3
UNREACHABLE, REFUSED = 4, 8


class Lab:
    """Three hosts, a control worker, and the specs that both are given."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.folder, self.watch = folder, watch
        self.fleet = Fleet(folder)
        self._real = {"MIKROM_DRIVER": "firecracker", "MIKROM_FIRECRACKER": os.environ["MIKROM_FIRECRACKER"]}
        self._real["MIKROM_SPECS"] = str(folder / "specs.yml")
        self.control = self.control_worker()
        self.workers = {host: self.worker(host) for host in HOSTS}

    def control_worker(self) -> subprocess.Popen[bytes]:
        return self.fleet.worker("control", pool="threads", app="mikrom_reconcile.celery_app", **self._real)

    def worker(self, host: str) -> subprocess.Popen[bytes]:
        argv = ["unshare", "--net", sys.executable, "-m", "celery", "-A", "mikrom_reconcile.celery_app"]
        argv += ["worker", "-P", "gevent", "-c", "100", "-n", f"host@{host}", "--without-mingle", "--without-gossip"]
        own = {"MIKROM_STATE_DIR": str(self.state(host)), "MIKROM_RUN_DIR": f"{self.folder}/run/{host}"}
        process = self.fleet.run(f"host-{host}", argv, **self._real | own, MIKROM_WORKER_ROLE="host", MIKROM_HOST=host)
        self.fleet.wait_for(f"host:{host}", process)
        return process

    def state(self, host: str) -> Path:
        return self.folder / "state" / host

    def write(self, web: int, db: int, *, boot_args: str = "", without: tuple[str, ...] = (), **states: str) -> None:
        hosts = {
            host: {"vars": {"rack": RACKS[host]}} | ({"state": states[host]} if host in states else {})
            for host in HOSTS
            if host not in without
        }
        machine = "machine: {mem_size_mib: 4}"
        (self.folder / "specs.yml").write_text(f"""\
apiVersion: mikrom/v1
kind: Project
metadata: {{name: lab}}
---
apiVersion: mikrom/v1
kind: Inventory
metadata: {{name: lab}}
spec: {{hosts: {json.dumps(hosts)}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {web}
  template: {{image: hello, {machine}, boot_args: "{boot_args}"}}
  rollout: {{serial: [1, "10%", "30%"]}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: db}}
spec:
  replicas: {db}
  template: {{image: hello, {machine}}}
  placement: {{constraint: [{{attribute: host.rack, value: b}}]}}
""")

    def mikrom(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "mikrom_reconcile", *words]
        env = self.fleet.environment(**self._real)
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=300)

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "mikrom_reconcile", *words]
        return self.fleet.run("command", argv, **self._real)

    def output(self, *words: str, code: int = 0) -> str:
        done = self.mikrom(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def apply(self, code: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.output("apply", "--yes", "-o", "json", code=code))
        return found

    def where(self) -> dict[str, Counter[str]]:
        """How many VMs of each fleet each host has, as /proc says."""
        found: dict[str, Counter[str]] = {host: Counter() for host in HOSTS}
        for vmm in self.watch.now():
            found[host_of(vmm)][vmm.vm.rpartition("-")[0]] += 1
        return found

    def close(self) -> None:
        self.fleet.close()
        for vmm in self.watch.now():
            os.kill(vmm.pid, signal.SIGKILL)


def host_of(vmm: VMM) -> str:
    """The host whose folder a VMM has its socket in."""
    argv = Path(f"/proc/{vmm.pid}/cmdline").read_bytes().split(b"\0")
    return Path(argv[argv.index(b"--api-sock") + 1].decode()).parents[1].name


@pytest.fixture
def lab(own_environment: Path) -> Iterator[Lab]:
    with Watch(own_environment / "run") as watch:
        found = Lab(own_environment, watch)
        try:
            yield found
        finally:
            found.close()


@pytest.mark.parametrize(
    ("web", "db"), [(24, 6), pytest.param(240, 60, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
def test_vms_are_placed_changed_in_steps_drained_and_never_too_many_down(lab: Lab, web: int, db: int) -> None:
    lab.write(web, db)
    lab.apply()
    found = lab.where()
    assert found["hv01"]["db"] == 0
    assert sum(found.values(), Counter()) == {"web": web, "db": db}
    assert max(host.total() for host in found.values()) - min(host.total() for host in found.values()) <= 1
    before = {vmm.vm: host_of(vmm) for vmm in lab.watch.now()}

    lab.watch.fewest = web + db
    lab.write(web, db, boot_args="second")
    lab.apply()
    assert web + db - lab.watch.fewest <= max(1, web // 10)
    assert {vmm.vm: host_of(vmm) for vmm in lab.watch.now()} == before

    lab.watch.fewest = web + db
    lab.write(web, db, boot_args="second", hv03="drain")
    lab.apply()
    found = lab.where()
    assert found["hv03"] == Counter()
    assert sum(found.values(), Counter()) == {"web": web, "db": db}
    assert web + db - lab.watch.fewest <= max(1, web // 10) + max(1, db // 10)

    lab.write(web, db, boot_args="second", without=("hv03",))
    assert lab.apply()["summary"]["unchanged"] == web + db
    now = lab.watch.now()
    lab.write(web, db, boot_args="second", without=("hv03", "hv02"))
    lab.apply(code=8)  # a host that still has VMs is drained first
    assert lab.watch.now() == now
    assert lab.watch.doubles == []


DOWN_AT_ONCE = 6
SIXTY = """\
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: lab}
spec: {hosts: {hv01: {}, hv02: {}, hv03: {}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 60
  template:
    {image: hello, machine: {mem_size_mib: 4}, boot_args: ARGS, checks: {up: {type: console, expect: MIKROM-UP}}}
  overrides: [{match: web-030, checks: {up: {type: console, expect: WORD}}}]
  rollout: {serial: [1, 5], min_healthy_time: 200ms, healthy_deadline: 20s, auto_revert: true}
"""


def kill_the_controller_amid(lab: Lab, more: int) -> None:
    """An apply whose control worker is killed once so many more VMMs were started; then there is another one."""
    expected = lab.watch.started + more
    run = lab.begin("apply", "--yes")
    lab.watch.wait_until(lambda watch: watch.started >= expected, f"{more} more VMMs", within_s=300)
    for process in (lab.control, run):
        process.kill()
        process.wait()
    lab.control = lab.control_worker()


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("fails", [False, True], ids=["it goes on", "it goes back"])
def test_of_sixty_vms_never_too_many_are_down_while_the_controller_is_killed_five_times(
    lab: Lab, *, fails: bool
) -> None:
    specs = lab.folder / "specs.yml"
    specs.write_text(SIXTY.replace("ARGS", "first").replace("WORD", "MIKROM-UP"))
    lab.apply()
    before, looks, lab.watch.fewest = lab.watch.now(), lab.watch.looks, 60
    specs.write_text(SIXTY.replace("ARGS", "second").replace("WORD", "never" if fails else "MIKROM-UP"))
    for more in (2, 10, 14, 4, 8):
        kill_the_controller_amid(lab, more)
    lab.apply(code=REFUSED if fails else 0)
    after, most = lab.watch.now(), 60 - lab.watch.fewest
    print(f"{lab.watch.looks - looks} looks: at most {most} of 60 down, {DOWN_AT_ONCE} allowed")  # noqa: T201
    records = [json.loads(path.read_text())["record"] for path in (lab.folder / "state").glob("*/vms/*/record.json")]
    assert [record["spec"]["boot_args"] for record in records] == ["first" if fails else "second"] * 60
    assert sorted(vmm.vm for vmm in after) == sorted(vmm.vm for vmm in before)
    untouched = {f"web-{number:03d}" for number in range(31, 60)} if fails else set()
    assert {vmm.vm for vmm in before & after} == untouched
    assert 0 < most <= DOWN_AT_ONCE
    assert lab.watch.doubles == []


def ask(lab: Lab, vm: str, method: str, path: str, content: dict[str, Any]) -> int:
    """Firecracker's API, asked behind everybody's back."""
    (vmm,) = (found for found in lab.watch.now() if found.vm == vm)
    place = lab.folder / "run" / host_of(vmm) / vm / "api.sock"
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(place))
        connection.request(method, path, json.dumps(content))
        return connection.getresponse().status
    finally:
        connection.close()


def test_drift_of_every_kind_is_found_and_mended_within_one_interval(lab: Lab) -> None:
    lab.write(12, 3)
    lab.apply()
    env = {"MIKROM_RECONCILE_INTERVAL": str(INTERVAL_S), "MIKROM_SPECS": str(lab.folder / "specs.yml")}
    lab.fleet.run("beat", [sys.executable, "run_beat.py"], **env)
    by_name = {vmm.vm: vmm for vmm in lab.watch.now()}
    where = {name: lab.state(host_of(vmm)) / "vms" / name / "record.json" for name, vmm in by_name.items()}

    os.kill(by_name["web-000"].pid, signal.SIGKILL)
    assert ask(lab, "web-001", "PATCH", "/vm", {"state": "Paused"}) == 204
    where["web-002"].unlink()
    where["web-003"].write_text(where["web-003"].read_text().replace('"boot_args":""', '"boot_args":"edited"'))

    def mended() -> bool:
        return (
            all(path.exists() for path in where.values()) and lab.mikrom("plan", "--detailed-exitcode").returncode == 0
        )

    wait_until(mended, "everything to be as specified", within_s=20 * INTERVAL_S)
    after = {vmm.vm: vmm for vmm in lab.watch.now()}
    assert after.keys() == by_name.keys()
    assert {name for name in after if after[name] != by_name[name]} == {"web-000"}
    assert lab.watch.doubles == []
    found = lab.output("events")
    assert "it is paused" in found
    assert "record.json is gone" in found
    assert "was edited or damaged" in found


def test_a_plan_is_the_same_after_redis_lost_everything(lab: Lab) -> None:
    lab.write(9, 3)
    lab.apply()
    lab.write(9, 4, boot_args="second")
    before = json.loads(lab.output("plan", "-o", "json"))
    lab.fleet.redis.flushall()
    for host in HOSTS:
        lab.fleet.wait_for(f"host:{host}", lab.workers[host])
    lab.fleet.wait_for(f"control:localhost:{lab.control.pid}", lab.control)
    after = json.loads(lab.output("plan", "-o", "json"))
    assert {key: value for key, value in after.items() if key != "taken_at"} == {
        key: value for key, value in before.items() if key != "taken_at"
    }
    assert len(after["changes"]) == 10


def test_a_host_that_is_dark_for_a_whole_run_keeps_its_vms_and_gets_its_share_once_it_is_back(lab: Lab) -> None:
    lab.write(9, 3)
    lab.apply()
    lab.workers["hv02"].kill()
    lab.workers["hv02"].wait()
    before = lab.watch.now()
    dark = {vmm for vmm in before if host_of(vmm) == "hv02"}
    assert len(dark) == 4
    victim = min(dark)
    os.kill(victim.pid, signal.SIGKILL)  # nobody can know: it is not made elsewhere
    lab.write(12, 3, boot_args="second")
    for _ in range(2):
        lab.apply(code=UNREACHABLE + REFUSED)
        alive = lab.watch.now()
        assert alive >= before - {victim}, "those in the dark may all be down: no other one is restarted"
        assert {vmm for vmm in alive if host_of(vmm) == "hv02"} == dark - {victim}
        assert sorted(vmm.vm for vmm in alive - before) == ["web-009", "web-010", "web-011"]
    lab.worker("hv02")
    lab.apply()
    assert sum(lab.where().values(), Counter()) == {"web": 12, "db": 3}
    assert {host_of(vmm) for vmm in lab.watch.now() if vmm.vm == victim.vm} == {"hv02"}
    assert lab.output("plan", "--detailed-exitcode")
    assert lab.watch.doubles == []


@pytest.mark.soak
def test_a_host_that_was_given_up_and_comes_back_stops_what_was_made_elsewhere(lab: Lab) -> None:
    lab.write(9, 0)
    lab.apply()
    lab.workers["hv02"].kill()
    lab.workers["hv02"].wait()
    lab.fleet.redis.delete("mikrom:alive:host:hv02")  # as it expires by itself
    lab.output("apply", "--yes", "--assume-dead", "hv02", code=UNREACHABLE)
    assert sum(lab.where().values(), Counter()) == {"web": 12}
    lab.write(9, 0, without=("hv02",))
    lab.apply()
    back = lab.worker("hv02")
    wait_until(lambda: lab.where()["hv02"] == Counter(), "the end of all that runs twice")
    assert "host:hv02 was given up (--assume-dead)" in lab.fleet.log("host:hv02")
    assert sum(lab.where().values(), Counter()) == {"web": 9}
    lab.fleet.wait_for("host:hv02", back)
    assert "a newer VM of this name is on" in lab.output("plan", "--detailed-exitcode", code=REFUSED)
    assert lab.output("orphans").count("double  ") == 3
    assert "web-001 is on 2 hosts" in lab.mikrom("get", "vms").stderr
    lab.output("apply", "--yes", code=REFUSED)
    lab.output("apply", "--yes", "--prune-max", "3")
    assert "double" not in lab.output("orphans")
    assert sum(lab.where().values(), Counter()) == {"web": 9}

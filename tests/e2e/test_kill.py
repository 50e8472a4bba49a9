"""`kill -9` of whoever does the work, at random moments of creating and restarting a fleet: the next run mends it.

A seed decides when, which VMM and which change. What is judged is /proc, the files, and each VMM's own word about
its configuration; of mikrom only exit codes are believed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.e2e.test_demo_guest import UnixConnection
from tests.fleet import Fleet
from tests.watch import Watch

VMS = 30
SPECS = """
apiVersion: mikrom/v1
kind: Project
metadata: {{name: kill}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {vms}
  template: {{image: hello, machine: {{mem_size_mib: {mem_size_mib}}}, boot_args: "{boot_args}"}}
"""
FIRST: Mapping[str, int | str] = {"mem_size_mib": 4, "boot_args": "first"}
CHANGES: tuple[Mapping[str, int | str], ...] = ({"mem_size_mib": 5}, {"boot_args": "second"})
"""Either of them restarts every VM, a tenth of them at a time."""

START_S = 0.03
"""About the time of a start or a restart: with it, every moment between two starts can be hit."""

FIRST_START_S = 0.25
"""About the time until the first one."""

FAILED, UNREACHABLE, REFUSED = 2, 4, 8

SEEDS = (100, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(20)))
"""`make test` takes the first."""

KEPT = re.compile(
    r"locks/(web-\d{3}\.vmm|actions|worker|kill\.lease)|tombstones/web-\d{3}\.json|tokens/kill/\d+"
    r"|machine|images/hello-[0-9a-f]{12}\.elf|store/(placements|revisions(-specs)?|runs/[a-z]+)/[^/]+"
)
"""Files that may outlive the last VM: lock files only where somebody was killed between two steps."""

pytestmark = pytest.mark.kvm


class Host:
    """This machine with a project of its own, and commands given as a person would."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._state_dir, self._run_dir = folder / "state", folder / "run"
        self._specs = folder / "specs.yml"
        self._environment = environment
        self._wanted: dict[str, int | str] = {"vms": VMS}

    def want(self, change: Mapping[str, int | str]) -> None:
        self._wanted |= change
        self._specs.write_text(SPECS.format(**self._wanted))

    def begin(self, command: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "mikrom_reconcile", command, str(self._specs), "--yes"]
        return subprocess.Popen(
            argv, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, command: str) -> None:
        code, said = end_of(self.begin(command))
        if code == REFUSED and "it has come up by itself" in said:  # the order met the host's supervision
            code, said = end_of(self.begin(command))
        words = "".join(f"{log}: {log.read_text()[-2000:]}\n" for log in sorted(self._state_dir.rglob("vmm.log")))
        assert code == 0, f"mikrom {command} ended with {code}:\n{said}\n{words}"

    def assert_as_wanted(self, watch: Watch) -> None:
        """One VMM per VM, and each says itself that it is configured as the specs want it."""
        alive = watch.now()
        assert sorted(vmm.vm for vmm in alive) == [f"web-{number:03d}" for number in range(VMS)]
        for vmm in alive:
            with closing(UnixConnection(self._run_dir / vmm.vm / "api.sock")) as api:
                api.request("GET", "/vm/config")
                config = json.loads(api.getresponse().read())
            told = config["machine-config"]["mem_size_mib"], config["boot-source"]["boot_args"]
            assert told == (self._wanted["mem_size_mib"], self._wanted["boot_args"]), vmm.vm

    def assert_nothing_left(self, watch: Watch) -> None:
        assert watch.now() == frozenset()
        assert list(self._run_dir.iterdir()) == []
        assert list((self._state_dir / "vms").iterdir()) == []
        files = [path.relative_to(self._state_dir) for path in self._state_dir.rglob("*") if not path.is_dir()]
        assert [str(path) for path in files if not KEPT.fullmatch(str(path))] == []
        assert len(list((self._state_dir / "tokens/kill").iterdir())) <= 2


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"mikrom did not end within 240 s; it said:\n{process.communicate()[0]}") from None
    return process.returncode, said


@pytest.fixture
def watch(own_environment: Path) -> Iterator[Watch]:
    """Kills what a failed test leaves."""
    with Watch(own_environment / "run") as watch:
        try:
            yield watch
        finally:
            for vmm in watch.now():
                os.kill(vmm.pid, signal.SIGKILL)


def go_through_life(
    host: Host, watch: Watch, chance: Random, kill: Callable[[subprocess.Popen[str]], None]
) -> Iterator[int]:
    """Create, restart and destroy all VMs, with a `kill` amid the first two; the exit codes of what it hit."""
    for change in (FIRST, chance.choice(CHANGES)):
        host.want(change)
        yield killed_amid(host, watch, chance, kill)
        host.run("apply")
        host.assert_as_wanted(watch)
    host.run("destroy")
    host.assert_nothing_left(watch)
    assert watch.doubles == []


def killed_amid(
    host: Host, watch: Watch, chance: Random, kill: Callable[[subprocess.Popen[str]], None], *, least_starts: int = 0
) -> int:
    """The exit code of an apply that saw a `kill` some way between its begin and its last start."""
    starts, before = chance.randrange(least_starts, VMS - 1), watch.started
    delay_s = chance.uniform(0, START_S if starts else FIRST_START_S)
    apply = host.begin("apply")
    with killed_if_it_fails(apply):
        watch.wait_until(lambda seen: seen.started >= before + starts, f"start number {starts}")
        time.sleep(delay_s)
        print(f"a kill {delay_s * 1000:.1f} ms after start {starts} of {VMS}")  # noqa: T201 - what a failure shows
        assert apply.poll() is None, "the apply had ended before"
        kill(apply)
        code, said = end_of(apply)
    print(f"the apply ended with {code}:\n{said}")  # noqa: T201
    return code


@contextmanager
def killed_if_it_fails(process: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.kill()
        end_of(process)
        raise


def test_the_watch_sees_two_vmms_of_one_vm(own_environment: Path, watch: Watch) -> None:
    run_dir = own_environment / "run"
    run_dir.mkdir()
    argv = [os.environ["MIKROM_FIRECRACKER"], "--id", "web-000", "--api-sock"]
    first = subprocess.Popen([*argv, str(run_dir / "1.sock")], stdout=subprocess.DEVNULL)
    watch.wait_until(lambda seen: seen.started == 1, "the first")
    assert watch.doubles == []
    second = subprocess.Popen([*argv, str(run_dir / "2.sock")], stdout=subprocess.DEVNULL)
    watch.wait_until(lambda seen: seen.started == 2, "the second")
    assert f"pid={first.pid}" in watch.doubles[0]
    assert f"pid={second.pid}" in watch.doubles[0]
    for vmm in (first, second):
        vmm.kill()
        vmm.wait()
    assert watch.now() == frozenset()


@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_killed_apply_the_next_one_converges(own_environment: Path, watch: Watch, seed: int) -> None:
    host = Host(own_environment, dict(os.environ))
    for code in go_through_life(host, watch, Random(f"apply {seed}"), lambda apply: apply.kill()):
        assert code == -signal.SIGKILL


@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_killed_apply_and_a_killed_destroy_the_next_destroy_leaves_nothing(
    own_environment: Path, watch: Watch, seed: int
) -> None:
    host, chance = Host(own_environment, dict(os.environ)), Random(f"destroy {seed}")
    host.want(FIRST)
    # a destroy that finds no VM gives no order, and so does not clean up after a kill before the first record
    killed_amid(host, watch, chance, lambda apply: apply.kill(), least_starts=1)
    there = len(watch.now())
    left = chance.randrange(there)
    destroy = host.begin("destroy")
    with killed_if_it_fails(destroy):
        watch.wait_until(lambda seen: len(seen.alive) <= left, f"{left} of {there} VMMs to be left")
        destroy.kill()
        end_of(destroy)
    host.run("destroy")
    host.assert_nothing_left(watch)
    assert watch.doubles == []


@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_killed_vmm_the_next_apply_converges(own_environment: Path, watch: Watch, seed: int) -> None:
    host, chance = Host(own_environment, dict(os.environ)), Random(f"vmm {seed}")

    def kill(_: subprocess.Popen[str]) -> None:
        watch.wait_until(lambda seen: seen.alive, "a VMM to kill")
        os.kill(chance.choice(sorted(watch.now())).pid, signal.SIGKILL)

    for code in go_through_life(host, watch, chance, kill):
        assert code in {0, FAILED, FAILED + REFUSED}  # what waits behind a VM that failed is refused for now


@pytest.mark.redis
@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_killed_worker_is_back_the_next_apply_converges(
    own_environment: Path, fleet: Fleet, watch: Watch, seed: int
) -> None:
    real = {"MIKROM_DRIVER": "firecracker", "MIKROM_FIRECRACKER": os.environ["MIKROM_FIRECRACKER"]}
    app = "mikrom_reconcile.celery_app"
    fleet.worker("control", pool="threads", app=app, **real)
    worker = fleet.worker("host", app=app, **real)

    def kill(_: subprocess.Popen[str]) -> None:
        nonlocal worker
        worker.kill()
        worker.wait()
        worker = fleet.worker("host", app=app, **real)

    host = Host(own_environment, fleet.environment(**real))
    for code in go_through_life(host, watch, Random(f"worker {seed}"), kill):
        assert not code & ~(FAILED | UNREACHABLE | REFUSED)  # what waits behind a VM that failed is refused for now


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    try:
        yield fleet
    finally:
        fleet.close()

"""What the tests of the command line and of fleets share.

Celery and Redis are imported where they are used: that takes a second, and on an emulated host half a minute.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.command import AS_A_PROGRAM, PROJECT, WEB, Mikrom, Run, forked, started
from tests.e2e.test_demo_guest import UnixConnection
from tests.watch import VMM, Watch

if TYPE_CHECKING:
    from mikrom_reconcile.dispatch.app import FleetApp
    from tests.fleet import Fleet


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    """A private Redis, and whatever is started beside it, for one test."""
    from tests.fleet import Fleet  # noqa: PLC0415 - see above

    fleet = Fleet(own_environment)
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def app(fleet: Fleet) -> Iterator[FleetApp]:
    """The Celery app of the fleet, as its clients have it."""
    from mikrom_reconcile.dispatch.app import make_app  # noqa: PLC0415 - see above

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
    """The command line; with `program`, what Python is given, in a Python of its own.

    A fleet's commands have one too: who forks would share its connections with them.
    """

    def run(*words: str, code: int | None = 0, program: Sequence[str] = ()) -> Run:
        if program or "MIKROM_BROKER_URL" in os.environ:
            done = started([sys.executable, *(program or AS_A_PROGRAM), *words], folder)
        else:
            done = forked(words, folder)
        assert "Traceback" not in done.stderr
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


# ---- a site

APP = "mikrom_reconcile.celery_app"
HOST = "host:localhost"
VMS = 12
SPECS = """\
apiVersion: mikrom/v1
kind: Project
metadata: {{name: faults}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {vms}
  prune: {{max: 100%}}
  template: {{image: hello, machine: {{mem_size_mib: 4}}, boot_args: "{boot_args}"}}
"""


def names(vms: int) -> list[str]:
    return [f"web-{number:03d}" for number in range(vms)]


class Site:
    """A host worker and a control worker over real microVMs, and commands given as a person would."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        from tests.fleet import Fleet  # noqa: PLC0415 - see above

        self.folder, self.watch = folder, watch
        self.fleet = Fleet(folder)
        self.real = {"MIKROM_DRIVER": "firecracker", "MIKROM_FIRECRACKER": os.environ["MIKROM_FIRECRACKER"]}
        self.control = self.control_worker()
        self.host = self.host_worker()

    def host_worker(self) -> subprocess.Popen[bytes]:
        return self.fleet.worker("host", app=APP, **self.real)

    def control_worker(self, **more: str) -> subprocess.Popen[bytes]:
        return self.fleet.worker("control", pool="threads", app=APP, **self.real, **more)

    def write(self, vms: int = VMS, boot_args: str = "first", name: str = "specs") -> Path:
        specs = self.folder / f"{name}.yml"
        specs.write_text(SPECS.format(vms=vms, boot_args=boot_args))
        return specs

    def begin(self, specs: Path, *words: str, **more: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "mikrom_reconcile", "apply", str(specs), "--yes", *words]
        environment = self.fleet.environment(**self.real, **more)
        return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def apply(self, specs: Path) -> None:
        code, said = end_of(self.begin(specs))
        assert code == 0, said

    def begin_and_wait_for(self, more: int, specs: Path) -> subprocess.Popen[str]:
        """An apply, two VMs at a time, amid which so many VMMs were started."""
        expected = self.watch.started + more
        run = self.begin(specs, "--forks", "2")
        self.watch.wait_until(lambda watch: watch.started >= expected, f"{more} more VMMs")
        assert run.poll() is None, "the run had ended before"
        return run

    def vmms(self) -> dict[str, VMM]:
        return {vmm.vm: vmm for vmm in self.watch.now()}

    def boot_args(self) -> dict[str, str]:
        """What each VM that lives says itself."""
        told = {}
        for vm in self.vmms():
            with closing(UnixConnection(self.folder / "run" / vm / "api.sock")) as api:
                api.request("GET", "/vm/config")
                told[vm] = str(json.loads(api.getresponse().read())["boot-source"]["boot_args"])
        return told

    def assert_as_wanted(self, vms: int = VMS, boot_args: str = "first") -> None:
        """One VMM and one record for each VM, and never more than one at any time."""
        assert sorted(vmm.vm for vmm in self.watch.now()) == names(vms)
        assert self.boot_args() == dict.fromkeys(names(vms), boot_args)
        assert self.records() == names(vms)
        assert self.watch.doubles == []

    def records(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "state" / "vms").iterdir())

    def close(self) -> None:
        self.fleet.close()
        for vmm in self.watch.now():
            with suppress(ProcessLookupError):
                os.kill(vmm.pid, signal.SIGKILL)


def end_of(run: subprocess.Popen[str], *, within_s: float = 60) -> tuple[int, str]:
    try:
        said, _ = run.communicate(timeout=within_s)
    finally:
        run.kill()
    assert "Traceback" not in said
    return run.returncode, said


@pytest.fixture
def site(own_environment: Path) -> Iterator[Site]:
    with Watch(own_environment / "run") as watch:
        site = Site(own_environment, watch)
        try:
            yield site
        finally:
            site.close()

"""A state folder that is moved away, or removed, while its VMMs run: nothing is made beside them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.system import processes
from tests.contract.drivers import Bench, SimulatedBench, wait_until
from tests.contract.hosts import Host
from tests.netns import bind, own_mounts

VM = "web-000"


@pytest.fixture
def host(bench: Bench, own_environment: Path) -> Host:
    if isinstance(bench, SimulatedBench):
        pytest.skip("its VMs are files in the folder that is moved")
    return Host(bench, own_environment)


@pytest.mark.parametrize("way", ["moved", "moved and made anew", "removed", "restored"])
def test_nothing_is_started_beside_vmms_whose_state_folder_went(host: Host, own_environment: Path, way: str) -> None:
    pid = host.created(VM).pid
    assert pid is not None
    aside, gone = own_environment / "aside", way in {"removed", "restored"}
    take_away(way, host.state_dir, aside)
    try:
        later = Host(host.bench, own_environment)
        for vm in (VM, "web-001"):
            outcome = later.agent.execute(later.order("create", vm))
            assert outcome.result == "failed_permanent"
            assert f"1 VMMs, such as {VM} (pid {pid})" in (outcome.error or "")
            assert later.seen(vm) is None
        report = later.agent.observe(ObserveQuery(strays=True))
        assert [(stray.vm, stray.pid) for stray in report.strays] == [(VM, pid)]
        assert pid not in {stray.pid for stray in report.foreign}
    finally:
        if gone:
            _kill(pid)
    if gone:
        assert later.agent.execute(later.order("create", VM)).result == "done"
    else:
        shutil.rmtree(host.state_dir)
        aside.rename(host.state_dir)
        seen = Host(host.bench, own_environment).seen(VM)
        assert seen is not None
        assert (seen.phase, seen.pid) == ("running", pid)


def test_a_process_whose_state_folder_was_moved_does_nothing_until_it_is_back(
    host: Host, own_environment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pid = host.created(VM).pid
    assert pid is not None
    host.agent.supervise(rescan_s=0.05)
    host.state_dir.rename(own_environment / "aside")
    try:
        with pytest.raises(SetupError, match="was moved away or replaced"):
            host.agent.observe(ObserveQuery())
        outcome = host.agent.execute(host.order("create", "web-001"))
        assert outcome.result == "failed_permanent"
        assert "was moved away" in (outcome.error or "")
        wait_until(lambda: "was moved away" in caplog.text, "its supervision to say so")
        assert not host.state_dir.exists()
        assert "Traceback" not in caplog.text
    finally:
        (own_environment / "aside").rename(host.state_dir)
    seen = host.seen(VM)
    host.close()
    assert seen is not None
    assert (seen.phase, seen.pid) == ("running", pid)


@pytest.mark.parametrize("written_down", [True, False])
def test_a_vmm_is_known_though_its_state_folder_was_mounted_anew(
    host: Host, own_environment: Path, *, written_down: bool
) -> None:
    disk = own_environment / "disk"
    for folder in (disk, host.state_dir):
        folder.mkdir(mode=0o700)
    with own_mounts():
        bind(disk, host.state_dir)
        pid = host.created(VM).pid
        assert pid is not None
        try:
            bind(disk, host.state_dir)
            assert str(own_environment) not in (processes.stdin_of(pid) or "")
            if not written_down:
                (host.state_dir / "vms" / VM / "proc.json").unlink()
            (own_environment / "run").rename(own_environment / "old")  # as of a container that was made anew
            shutil.copytree(
                own_environment / "old", own_environment / "run", ignore=shutil.ignore_patterns("*.sock"), symlinks=True
            )
            later = Host(host.bench, own_environment)
            report = later.agent.observe(ObserveQuery(strays=True))
            assert [row.pid for row in report.vms] == [pid]
            assert pid not in {stray.pid for stray in (*report.strays, *report.foreign)}
            assert later.agent.execute(later.order("create", "web-001")).result == "done"
            for vm in (VM, "web-001"):
                outcome = later.agent.execute(later.order("delete", vm, later.seen(vm)))
                assert (outcome.result, outcome.error) == ("done", None)
            assert processes.identify(pid) is None
        finally:
            _kill(pid)


def take_away(way: str, state_dir: Path, aside: Path) -> None:
    if way == "restored":  # as it was before the first VM
        shutil.copytree(state_dir, aside, symlinks=True, ignore=shutil.ignore_patterns(f"{VM}*"))
    if way in {"removed", "restored"}:
        shutil.rmtree(state_dir)
    else:
        state_dir.rename(aside)
    if way == "restored":
        aside.rename(state_dir)
    if way == "moved and made anew":
        state_dir.mkdir(mode=0o700)


def _kill(pid: int) -> None:
    if (identity := processes.identify(pid)) is None:
        return
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(identity), "the end of what was killed")

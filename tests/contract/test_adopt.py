"""What somebody started by hand and its host takes over: it goes on in its process, and the host does the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, VMSpec
from mikrom_reconcile.core.model.plan import Order
from tests.by_hand import CONFIG, started_by_hand
from tests.contract.drivers import JailBench, RealBench, wait_until
from tests.contract.field_rows import Socket
from tests.contract.hosts import Host
from tests.contract.test_host_killed import killed_before_step
from tests.fakes import HOST, desired_vm
from tests.netns import own_namespace

pytestmark = [pytest.mark.kvm, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]
VM = "web-000"


@pytest.fixture
def host(real: RealBench, own_environment: Path) -> Host:
    return Host(real, own_environment)


def wanted(host: Host, socket: Path, **other: Any) -> DesiredVM:
    """What describes it, in a spec."""
    found = host.bench.driver.described(str(socket))
    assert found.problem == ""
    spec = msgspec.convert({"image": "web", "boot": found.image, **found.template, **other}, VMSpec)
    return replace(desired_vm(VM, spec), adopts=(HOST, str(socket)))


def ordered(host: Host, socket: Path, vm: str = VM, **other: Any) -> Order:
    return host.order("import", vm, desired=replace(wanted(host, socket, **other), name=vm))


def test_it_goes_on_as_it_is_and_a_restart_brings_it_back_with_its_disks(real: RealBench, host: Host) -> None:
    with started_by_hand(real.binary, host.state_dir) as (socket, process):
        outcome = host.agent.execute(ordered(host, socket))
        assert (outcome.result, outcome.error) == ("done", None)
        desired, seen = wanted(host, socket), host.seen(VM)
        assert seen is not None
        assert (seen.pid, seen.phase, seen.drift) == (process.pid, "running", ())
        assert host.next_order(VM, desired) is None
        assert process.pid not in {stray.pid for stray in real.driver.foreign()}
        assert [stray.vm for stray in real.driver.strays(())] == [VM], "should its record be lost"
        refused = host.agent.execute(
            host.order("suspend", VM, host.seen(VM), desired=replace(desired, state="suspended"))
        )
        assert "restart it once" in (refused.error or "")
        assert host.seen(VM).phase == "running"  # type: ignore[union-attr]

        Socket(socket).ask("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": "existing/root.img"})
        drift = [item.path for item in host.seen(VM).drift]  # type: ignore[union-attr]
        assert drift == ["drives.data"]
        assert [done.verb for done in host.converge(VM, desired)] == ["restart"]
        assert process.wait(10) is not None
        (pid,) = real.pids(VM)
        config = Socket(real.socket(VM)).ask("GET", "/vm/config")[1]
    assert (host.seen(VM).pid, host.seen(VM).drift) == (pid, ())  # type: ignore[union-attr]
    disks = {drive["drive_id"]: (drive["path_on_host"], drive["is_root_device"]) for drive in config["drives"]}
    folder = host.state_dir / "existing"
    assert disks == {"system": (f"{folder}/root.img", True), "data": (f"{folder}/data.img", False)}
    assert host.agent.execute(host.order("delete", VM, host.seen(VM))).result == "done"
    assert host.leftovers() == [f"{folder}/data.img", f"{folder}/root.img"], "files of others stay"


def test_killed_between_two_steps_it_is_taken_over_by_the_same_again(real: RealBench, host: Host) -> None:
    for number in range(4):
        with started_by_hand(real.binary, host.state_dir) as (socket, process):
            host.token += 1
            order = ordered(host, socket)
            assert killed_before_step(number, host, order)
            assert process.poll() is None
            outcome = host.agent.execute(order)
            assert outcome.result in {"done", "already_done"}, outcome.error
            assert (host.seen(VM).pid, host.seen(VM).phase) == (process.pid, "running")  # type: ignore[union-attr]
            assert host.next_order(VM, wanted(host, socket)) is None
            assert host.agent.execute(host.order("delete", VM, host.seen(VM))).result == "done"
            assert process.wait(10) is not None
    assert not killed_before_step(4, host, order), "the loop above has tried every step"


def test_of_two_names_at_once_one_gets_it(real: RealBench, host: Host) -> None:
    with started_by_hand(real.binary, host.state_dir, CONFIG | {"drives": []}) as (socket, process):
        orders = [ordered(host, socket, vm) for vm in ("one", "two")]
        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(lambda given: host.another().execute(given), orders))
        assert sorted(outcome.result for outcome in outcomes) == ["done", "failed_permanent"]
        owner = next(outcome.vm for outcome in outcomes if outcome.result == "done")
        assert [row.name for row in (host.seen("one"), host.seen("two")) if row] == [owner]
        assert any(f"is {owner}" in (outcome.error or "") for outcome in outcomes)
        host.agent.execute(host.order("delete", owner, host.seen(owner)))
        assert process.wait(10) is not None


def test_what_is_not_as_the_spec_says_is_left_as_it_is(real: RealBench, host: Host) -> None:
    with started_by_hand(real.binary, host.state_dir) as (socket, process):
        outcome = host.agent.execute(ordered(host, socket, machine={"vcpu_count": 2, "mem_size_mib": 16}))
        assert (outcome.result, outcome.observed) == ("failed_permanent", None)
        assert "machine.vcpu_count is 1: correct the spec" in (outcome.error or "")
        missing = ordered(host, socket, boot={"kernel": {"source": "file:///nowhere", "sha256": "0" * 64}})
        assert "MIKROM_IMAGE_DIRS" in (host.agent.execute(missing).error or "")
        assert host.seen(VM) is None
        assert process.poll() is None
        assert [path for path in host.leftovers() if "/vms/" in path] == []


def changed(section: str, **fields: Any) -> dict[str, Any]:
    config = deepcopy(CONFIG)
    target = config.setdefault(section, {})
    (target[0] if isinstance(target, list) else target).update(fields)
    return config


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an async drive": (changed("drives", io_engine="Async"), "no words for drives.io_engine: start it without"),
    "a limit": (changed("drives", rate_limiter={"ops": {"size": 1, "refill_time": 100}}), "drives.rate_limiter"),
    "the order": (CONFIG | {"drives": [*CONFIG["drives"], CONFIG["drives"][0] | {"drive_id": "a"}]}, "(data, a)"),
    "dirty pages": (changed("machine-config", track_dirty_pages=True), "machine-config.track_dirty_pages"),
    "no arguments": (CONFIG | {"boot-source": {"kernel_image_path": "images/vmlinux"}}, "boot_args that it was not"),
    "a vsock": (CONFIG | {"vsock": {"guest_cid": 3, "uds_path": "v.sock"}}, "no words for vsock"),
    "another folder": (changed("drives", path_on_host="vm.json"), "MIKROM_DRIVE_DIRS says where"),
    "no guest": ({}, "has not booted its guest"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_the_specs_have_no_words_for_is_refused_by_name(real: RealBench, host: Host, why: str) -> None:
    config, words = REFUSED[why]
    with started_by_hand(real.binary, host.state_dir, config) as (socket, _):
        found = real.driver.described(str(socket))
        assert words in found.problem
        assert found.image == found.template == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes taps")
def test_an_interface_is_refused_since_its_tap_is_somebody_elses(real: RealBench, host: Host) -> None:
    with own_namespace():
        subprocess.run(["ip", "tuntap", "add", "tap7", "mode", "tap"], check=True)
        config = CONFIG | {"network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap7"}]}
        with started_by_hand(real.binary, host.state_dir, config) as (socket, _):
            assert "no words for network-interfaces" in real.driver.described(str(socket)).problem


def test_who_is_no_firecracker_that_runs_here_is_told_so(real: RealBench, host: Host) -> None:
    host.created(VM)
    assert "was started by mikrom" in real.driver.described(str(real.socket(VM))).problem
    host.bench.kill(VM)
    assert "nobody listens at" in real.driver.described(str(real.socket(VM))).problem
    assert "nobody listens at /nowhere" in real.driver.described("/nowhere").problem
    with started_by_hand(real.binary, host.state_dir) as (socket, _):
        (host.state_dir / "existing/root.img").rename(host.state_dir / "existing/mine")
        (host.state_dir / "existing/root.img").touch()
        assert "root.img is not what drive system has open" in real.driver.described(str(socket)).problem
    host.agent.execute(host.order("delete", VM, host.seen(VM)))


ANSWERING = """
import os, socket, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[2] + ".new")
listening.listen()
os.rename(sys.argv[2] + ".new", sys.argv[2])  # what is there listens
while True:
    connection, _ = listening.accept()
    while request := connection.recv(4096):
        body = (sys.argv[3] if b"GET / " in request else '{"boot-source": []}').encode()
        connection.sendall(b"HTTP/1.1 200 \\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
"""


def test_what_only_calls_itself_a_firecracker_is_refused(real: RealBench, own_environment: Path) -> None:
    for number, (version, words) in enumerate(
        {"1.9.0": "Firecracker 1.9.0, older than Firecracker 1.10", "1.12.1": "not what such a VMM says"}.items()
    ):
        socket = own_environment / f"{number}.sock"
        said = f'{{"state": "Running", "vmm_version": "{version}", "app_name": "Firecracker"}}'
        process = subprocess.Popen([sys.executable, "-c", ANSWERING, "--api-sock", str(socket), said])
        try:
            wait_until(socket.exists, "its socket")
            assert words in real.driver.described(str(socket)).problem
        finally:
            process.kill()
            process.wait()


@pytest.mark.jail
def test_what_is_in_a_jail_is_refused(jailed: JailBench, own_environment: Path) -> None:
    host = Host(jailed, own_environment)
    host.created(VM)
    assert "it is in a jail or a container" in jailed.driver.described(str(jailed.socket(VM))).problem
    host.agent.execute(host.order("delete", VM, host.seen(VM)))

"""What only a jail can do wrong: let a VMM see or have too much, lose its data, or stay behind.

The contract of drivers runs in jails too (`test_driver.py`, `test_driver_killed.py`).
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Drive, DriveRateLimiter, Machine, VMSpec, Vsock
from mikrom_reconcile.core.model.errors import TemporaryError
from mikrom_reconcile.host.drivers import jail
from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver
from mikrom_reconcile.host.drivers.jail import FIRST_UID, UIDS
from mikrom_reconcile.host.drivers.vmm import StateLayout
from mikrom_reconcile.times_and_sizes import VMMS
from tests.contract.drivers import DEADLINE_S, JailBench, RealBench, is_live, record_of, wait_until
from tests.contract.hosts import Host
from tests.contract.test_media import wanted
from tests.fakes import desired_vm
from tests.guests import MEM_MIB

pytestmark = [pytest.mark.kvm, pytest.mark.jail]
RECORD = record_of("a")


def start(bench: RealBench, vm: str = "a", boot_args: str = "") -> int:
    bench.driver.start(record_of(vm, boot_args), deadline_s=DEADLINE_S)
    (pid,) = bench.pids(vm)
    return pid


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_vmm_has_a_user_a_root_and_a_session_of_its_own_and_no_capability(jailed: JailBench) -> None:
    pids = {vm: start(jailed, vm) for vm in ("a", "b")}
    uids = {vm: int(status_of(pid)["Uid"].split()[1]) for vm, pid in pids.items()}
    assert len(set(uids.values())) == 2
    assert all(FIRST_UID <= uid < FIRST_UID + UIDS for uid in uids.values())
    for vm, pid in pids.items():
        status = status_of(pid)
        assert (status["CapEff"], status["NSpid"].split()[1:]) == ("0" * 16, ["1"])
        assert status["Gid"].split() == [str(uids[vm])] * 4
        assert os.getsid(pid) != os.getsid(0)
        seen = {path.name for path in Path(f"/proc/{pid}/root").iterdir()}
        seen.remove(Path((jailed.folder / "run" / vm / "api.sock").readlink()).name)
        assert seen == {"dev", "firecracker", "firecracker.pid", "kernel", "metrics", "run", "vmm.log"}
        assert not Path(f"/proc/{pid}/root/kernel").stat().st_mode & 0o222


def test_a_jailed_vm_has_its_devices_and_an_existing_file_is_read_by_all(jailed: JailBench) -> None:
    path = (jailed.folder / "state/existing/seed.img").resolve()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"seed".ljust(1 << 20))
    path.chmod(0o600)
    drives = {"seed": Drive(source=f"file://{path}", read_only=True, rate_limiter=DriveRateLimiter(ops=9))}
    records = [
        replace(record_of(vm), spec=replace(RECORD.spec, vsock=Vsock(guest_cid=7), drives=drives)) for vm in ("a", "b")
    ]
    for record in records:
        for _ in range(2):
            jailed.driver.start(record, deadline_s=DEADLINE_S)
            facts = jailed.driver.observe(record)
            assert (facts.status, facts.drift) == ("running", ())
            jailed.driver.stop(record, grace_s=0)
        jailed.driver.start(record, deadline_s=DEADLINE_S)
        with socket.socket(socket.AF_UNIX) as host_end:
            host_end.connect(str(jailed.folder / "run" / record.vm / "v.sock"))
        jailed.driver.delete(record)
    assert path.read_bytes().startswith(b"seed")
    assert path.stat().st_mode & 0o777 == 0o444
    assert files_of_others(jailed) == []


def files_of_others(jailed: JailBench) -> list[Path]:
    return [path for path in jailed.leftovers() if path.parent.name not in {"existing", "images"}]


def test_a_vmm_is_in_cgroups_with_its_limits(jailed: JailBench) -> None:
    pid = start(jailed)
    version, controllers = jail.hierarchy()
    if not controllers:
        pytest.skip("this machine offers no cgroup controller to limit a VMM by")
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    inside = [line for line in lines if line.endswith("-a/a") and "mikrom-" in line]
    assert len(inside) == (len(controllers) if version == 1 else 1)


def test_a_guest_that_takes_more_memory_than_its_cgroup_has_is_told(
    jailed: JailBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "memory" not in jail.hierarchy()[1]:
        pytest.skip("this machine offers no memory controller")
    monkeypatch.setattr(jail, "VMMS", replace(VMMS, cgroup_overhead_mib=-64))
    record = record_of("a", "mikrom.mode=touch:100", mem_size_mib=128)
    jailed.driver.start(record, deadline_s=DEADLINE_S)
    wait_until(lambda: not jailed.pids("a"), "the kernel's kill")
    assert jailed.driver.observe(record).end == "oom"
    jailed.driver.delete(record)
    assert jailed.leftovers() == []


def test_data_outlive_the_jail_and_the_setting(jailed: JailBench, own_environment: Path) -> None:
    host = Host(jailed, own_environment)
    vm: DesiredVM = wanted(own_environment, drives={"data": Drive(size_mib=1)})
    host.created("web-000", vm)
    root, data = (own_environment / "state" / path for path in ("vms/web-000", "drives/shop/web-000/data.img"))
    (image,) = root.glob("root-*.img")
    (pid,) = jailed.pids("web-000")
    assert Path(f"/proc/{pid}/root/rootfs.img").stat().st_ino == image.stat().st_ino
    data.write_bytes(b"mine")
    image.write_bytes(b"kept")
    seen = host.seen("web-000")
    assert seen is not None
    assert (seen.phase, seen.drift) == ("running", ())
    jailed.kill("web-000")
    assert [outcome.result for outcome in host.converge("web-000", vm)] == ["done"]
    assert (data.read_bytes()[:4], image.read_bytes()[:4]) == (b"mine", b"kept")

    plain = Host(RealBench(str(jailed.binary), own_environment), own_environment)
    seen = plain.seen("web-000")
    assert seen is not None
    assert (seen.phase, seen.drift) == ("running", ())
    jailed.kill("web-000")
    plain.token = host.token
    assert [outcome.result for outcome in plain.converge("web-000", vm)] == ["done"]
    assert (data.read_bytes()[:4], image.read_bytes()[:4]) == (b"mine", b"kept")
    assert list((own_environment / "state/jails").iterdir()) == []
    plain.converge("web-000", None)
    assert (list((own_environment / "state/uids").iterdir()), data.exists()) == ([], True)


def leave_a_jail(jailed: JailBench) -> None:
    start(jailed)
    jailed.kill("a")


def leave_odd_files(jailed: JailBench) -> None:
    leave_a_jail(jailed)
    (root,) = (jailed.folder / "state/jails/a").glob("*/*/root")
    shutil.rmtree(root / "dev")
    (root / "dev").symlink_to(jailed.folder)
    (root / "firecracker.pid").unlink()
    (root / "firecracker.pid").symlink_to("/proc/self/stat")


@pytest.mark.parametrize("leave", [leave_a_jail, leave_odd_files])
def test_what_a_jail_left_is_in_nobodys_way(jailed: JailBench, leave: Callable[[JailBench], None]) -> None:
    leave(jailed)
    start(jailed)
    assert jailed.driver.observe(RECORD).status == "running"
    leave(jailed)
    jailed.driver.delete(RECORD)
    assert jailed.leftovers() == []


def test_a_user_that_is_taken_goes_to_nobody_else(jailed: JailBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mikrom_reconcile.host.drivers.jail.UIDS", 2)
    assert {int(status_of(start(jailed, vm))["Uid"].split()[0]) for vm in ("a", "b")} == {FIRST_UID, FIRST_UID + 1}
    with pytest.raises(TemporaryError, match="all 2 users for VMs are taken"):
        start(jailed, "c")
    jailed.driver.delete(record_of("a"))
    start(jailed, "c")


def test_a_jailer_that_fails_is_told_in_its_words_and_leaves_nothing(jailed: JailBench) -> None:
    sulking = jailed.folder / "sulking"
    sulking.write_text("#!/bin/sh\necho no mood today >&2\nexit 1\n", encoding="utf-8")
    sulking.chmod(0o700)
    state, run = jailed.folder / "state", jailed.folder / "run"
    driver = FirecrackerDriver(jailed.binary, jailer=sulking, state_dir=state, run_dir=run)
    with pytest.raises(TemporaryError, match="ended by itself, saying: no mood today"):
        driver.start(RECORD, deadline_s=DEADLINE_S)
    assert not StateLayout(state, run).of("a").jail.exists()
    jailed.driver.delete(RECORD)
    assert jailed.leftovers() == [sulking]


def test_what_a_jailed_vmm_cannot_find_is_named(jailed: JailBench, own_environment: Path) -> None:
    other = Path("/tmp") if own_environment.is_relative_to("/dev/shm") else Path("/dev/shm")
    images = other / f"{own_environment.name}-images"
    images.mkdir()
    try:
        (own_environment / "state").mkdir()
        (own_environment / "state/images").symlink_to(images)
        host = Host(jailed, own_environment)
        outcome = host.agent.execute(host.order("create", "a", desired=desired_vm("a", VMSpec(image="hello"))))
        assert "it is not on the file system of" in str(outcome.error)
        assert jailed.all_pids() == []
    finally:
        shutil.rmtree(images)


def test_a_bigger_machine_gets_bigger_limits(jailed: JailBench) -> None:
    host = Host(jailed, jailed.folder)
    host.created("a", desired_vm("a", VMSpec(image="hello", machine=Machine(mem_size_mib=MEM_MIB))))
    bigger = desired_vm("a", VMSpec(image="hello", machine=Machine(mem_size_mib=16 * MEM_MIB)))
    assert [outcome.verb for outcome in host.converge("a", bigger)] == ["restart"]
    version, controllers = jail.hierarchy()
    if "memory" not in controllers:
        pytest.skip("this machine offers no memory controller")
    named, file = {1: (":memory:", "memory.limit_in_bytes"), 2: ("0::", "memory.max")}[version]
    (pid,) = jailed.pids("a")
    (line,) = (line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if named in line)
    limit = controllers["memory"] / line.rpartition(":")[2].lstrip("/") / file
    assert int(limit.read_text()) == (16 * MEM_MIB + MEM_MIB // 4 + VMMS.cgroup_overhead_mib) << 20


def test_a_test_that_fails_after_it_moved_the_state_folder_leaves_no_vmm(
    jailed: JailBench, own_environment: Path
) -> None:
    pid = start(jailed)
    (own_environment / "state").rename(own_environment / "aside")
    assert jailed.all_pids() == []
    jailed.close()
    assert not is_live(pid)
    assert [path for path in jailed.leftovers() if "cgroup" in path.parts] == []

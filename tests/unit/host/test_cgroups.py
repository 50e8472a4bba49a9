"""Which limits a jailer is told, by what the host offers."""

from __future__ import annotations

from pathlib import Path

from mikrom_reconcile.core.model.desired import Machine
from mikrom_reconcile.host.drivers import jail
from mikrom_reconcile.host.drivers.vmm import StateLayout

V1 = """tmpfs /sys/fs/cgroup tmpfs ro,relatime 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup ro,relatime,pids 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""


def test_v1_has_what_is_mounted_and_open_to_us() -> None:
    root = Path("/sys/fs/cgroup")
    assert jail.offered(V1) == (1, {"cpu": root / "cpu,cpuacct", "memory": root / "memory"})


def test_v2_has_what_its_root_names(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory\n")
    assert jail.offered(f"cgroup2 {tmp_path} cgroup2 rw,nosuid 0 0") == (2, {"cpu": tmp_path, "memory": tmp_path})


def test_limits_are_told_in_the_words_of_each_version(tmp_path: Path) -> None:
    places = StateLayout(tmp_path, tmp_path).of("a")
    machine = Machine(vcpu_count=2, mem_size_mib=128)
    v1 = list(jail._cgroup_arguments(places, machine, (1, dict.fromkeys(jail.CONTROLLERS, tmp_path))))
    assert v1[:2] == ["--cgroup-version", "1"]
    assert v1[5::2] == [f"memory.limit_in_bytes={162 << 20}", "cpu.shares=2048", "pids.max=18"]
    v2 = list(jail._cgroup_arguments(places, machine, (2, {"memory": tmp_path, "cpu": tmp_path})))
    assert v2[5::2] == [f"memory.max={162 << 20}", "cpu.weight=200"]
    assert list(jail._cgroup_arguments(places, machine, (2, {}))) == []

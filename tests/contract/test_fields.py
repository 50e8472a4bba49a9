"""The table of fields against real VMMs, bridges and files: each impact is carried out and seen, none is believed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mikrom_reconcile.core.model.fields import FIELDS, is_row_of
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import Impact, VMChange
from mikrom_reconcile.core.planning.rules import DiffInput, judge
from mikrom_reconcile.core.specs import releases
from mikrom_reconcile.host.drivers import select
from mikrom_reconcile.host.resources.images import ImageCache
from tests.container_images import Workshop
from tests.contract.drivers import DEADLINE_S, KINDS, Bench, RealBench, SimulatedBench
from tests.contract.field_rows import MIB, NIC, ROWS, VM, Row, Socket, World, concrete, pinned
from tests.guests import MEM_MIB
from tests.netns import own_namespace

COSTS: dict[Impact, str] = {"record": "update", "live": "update", "restart": "restart", "replace": "replace"}
REFUSED_LIVE = {
    "machine.vcpu_count": ("machine-config", "vcpu_count", 2),
    "machine.mem_size_mib": ("machine-config", "mem_size_mib", 2 * MEM_MIB),
    "machine.smt": ("machine-config", "smt", True),
    "boot_args": ("boot-source", "boot_args", "loud"),
}


@pytest.mark.parametrize("kind", [param for kind, param in KINDS.items() if kind != "jailed"])
def test_every_field_is_carried_out_seen_and_seen_to_drift(
    request: pytest.FixtureRequest, own_environment: Path, kind: str
) -> None:
    bench: Bench = SimulatedBench(own_environment) if kind == "simulated" else request.getfixturevalue(kind)
    with own_namespace():
        world = World(bench, own_environment)
        world.host.created(VM, world.desired())
        for path, row in ROWS.items():
            if bench.driver.name in row.on and not row.test:
                carry_out_and_undo(world, path, row)


def carry_out_and_undo(world: World, path: str, row: Row) -> None:
    """Change the field, see it; undo it by hand, see that; have it mended, and see it again."""
    pids, impact = world.bench.pids(VM), FIELDS[path]
    world.before = world.desired().spec
    value = change(world, path, row)
    planned = plan(world)
    assert planned.kind == COSTS[impact], path
    assert any(is_row_of(path, field.path) and field.impact == impact for field in planned.fields), (path, planned)
    mend(world, path, COSTS[impact].replace("replace", "restart"))
    assert (world.bench.pids(VM) == pids) == (impact in {"record", "live"}), path
    look(world, path, row, value)

    row.undo(world)
    found = [drift.path for drift in seen(world).drift]
    assert row.drift in found, f"{path} was undone by hand, and this was seen: {found}"
    mend(world, path)
    look(world, path, row, value)


def change(world: World, path: str, row: Row) -> Any:
    for other, value in {**(row.also or {}), concrete(path): row.value}.items():
        there = value(world) if callable(value) else value
        world.set(other, deepcopy(there))  # later rows set what is inside, and the table is there for all drivers
    return there


def look(world: World, path: str, row: Row, value: Any) -> None:
    """What is to be is recorded, and at the other end; nothing differs any more."""
    if not isinstance(value, dict):
        assert world.recorded(concrete(path)) == value, path
    if row.see is not None:
        assert row.see(world) == (row.shown(world) if row.shown else value), path
    assert seen(world).drift == (), path


def mend(world: World, path: str, verb: str = "") -> None:
    converged = world.host.converge(VM, world.desired())
    outcomes = [outcome for outcome in converged if outcome.result != "failed_temporary"]  # late on a busy machine
    assert [outcome.result for outcome in outcomes] == ["done"], (path, converged)
    assert not verb or [outcome.verb for outcome in outcomes] == [verb], path


def seen(world: World) -> ObservedVM:
    found = world.host.seen(VM)
    assert found is not None
    return found


def plan(world: World) -> VMChange:
    desired, observed = world.desired(), seen(world)
    verdict = judge(DiffInput(desired=desired, observed=observed))
    assert isinstance(verdict, VMChange), (desired, observed)
    return verdict


@pytest.mark.kvm
def test_what_costs_a_restart_is_what_firecracker_refuses_to_change_while_it_runs(
    real: RealBench, own_environment: Path
) -> None:
    world = World(real, own_environment)
    world.host.created(VM, world.desired())
    before, api = world.config(), Socket(real.socket(VM))
    for path, (section, name, value) in REFUSED_LIVE.items():
        assert FIELDS[path] == "restart"
        for method, content in (("PUT", before[section] | {name: value}), ("PATCH", {name: value})):
            status, answer = api.ask(method, f"/{section}", content)
            assert status == 400, f"{method} changes {path} live: its impact is not restart"
            assert answer["fault_message"]
    assert world.config() == before


@pytest.mark.kvm
def test_a_cpu_template_reaches_the_vmm_or_says_why_it_cannot(real: RealBench, own_environment: Path) -> None:
    world = World(real, own_environment)
    world.set("machine.cpu_template", "T2")
    order = world.host.next_order(VM, world.desired())
    assert order is not None
    outcome = world.host.agent.execute(order)
    if outcome.result == "done":  # an Intel CPU that has it
        assert world.machine("cpu_template") == "T2"
    else:
        assert "CPU template" in str(outcome.error)
        assert real.pids(VM) == []


@pytest.mark.kvm
def test_huge_pages_reach_the_vmm_or_it_says_how_many_lack(real: RealBench, own_environment: Path) -> None:
    world = World(real, own_environment)
    world.set("machine.huge_pages", "2M")
    world.set("machine.mem_size_mib", 16)
    order = world.host.next_order(VM, world.desired())
    assert order is not None
    outcome = world.host.agent.execute(order)
    if outcome.result == "done":  # a host that has set some aside
        assert world.machine("huge_pages") == "2M"
    else:
        assert "takes 8 pages of 2 MiB and 0 are free here: raise vm.nr_hugepages" in str(outcome.error)
        assert real.pids(VM) == []


@pytest.mark.kvm
def test_a_custom_cpu_template_boots_and_one_that_firecracker_does_not_read_says_why(
    real: RealBench, own_environment: Path
) -> None:
    world = World(real, own_environment)
    register = {"register": "ebx", "bitmap": "0b2"}
    leaf = {"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [register]}
    world.set("cpu_config", {"cpuid_modifiers": [leaf]})
    order = world.host.next_order(VM, world.desired())
    assert order is not None
    assert "configuring the CPU" in str(world.host.agent.execute(order).error)
    assert real.pids(VM) == []
    register["bitmap"] = "0bxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    mend(world, "cpu_config")
    assert world.recorded("cpu_config") == world.fields["cpu_config"]
    assert seen(world).drift == (), "Firecracker does not show it: what it was started with is believed"
    register["bitmap"] = "0bxxxxxxxxxxxxxxxxxxxxxx0xxxxxxxxx"
    mend(world, "cpu_config", "restart")


@pytest.mark.kvm
def test_what_only_later_releases_know_is_refused_by_name(real: RealBench, own_environment: Path) -> None:
    with own_namespace():
        world = World(real, own_environment)
        nic = {"network": "prod", "cidr": "10.0.0.0/24", "gateway": "10.0.0.1"}
        world.set(NIC, nic)
        world.set("mmds", {"role": "a"})
        world.host.created(VM, world.desired())
        version = select.release_at(Path(os.environ["MIKROM_FIRECRACKER"]))
        for path, value in (("mmds_config.imds_compat", True), (f"{NIC}.mtu", 1400)):
            before = deepcopy(world.fields)
            world.set(path, value)
            if releases.field_problem(version, path):
                order = world.host.next_order(VM, world.desired())
                assert order is not None
                assert path in str(world.host.agent.execute(order).error)
                assert seen(world).phase == "running", "it was refused before anything was stopped"
                world.fields = before
            else:
                mend(world, path, "restart")
                assert seen(world).drift == ()


@pytest.mark.kvm
def test_a_balloon_of_a_guest_without_a_driver_says_so(real: RealBench, own_environment: Path) -> None:
    world = World(real, own_environment)
    world.set("balloon", {"amount_mib": 0})
    world.host.created(VM, world.desired())
    world.set("balloon.amount_mib", 1)
    assert plan(world).kind == "update"
    order = world.host.next_order(VM, world.desired())
    assert order is not None
    assert "Device not activated yet" in str(world.host.agent.execute(order).error)


@pytest.mark.kvm
def test_a_drive_that_a_kernel_boots_from_comes_first(real: RealBench, own_environment: Path) -> None:
    world = World(real, own_environment)
    world.set("drives", {"a": {"size_mib": 1}, "b": {"size_mib": 1}})
    world.host.created(VM, world.desired())
    world.set("drives.b.is_root_device", value=True)
    mend(world, "drives.b.is_root_device", "restart")
    assert [(drive["drive_id"], drive["is_root_device"]) for drive in world.config()["drives"]] == [
        ("b", True), ("a", False)
    ]  # fmt: skip
    assert seen(world).drift == ()


@pytest.mark.kvm
@pytest.mark.needs("umoci", "mke2fs")
@pytest.mark.skipif(os.geteuid() != 0, reason="not root, which unpacking a container image takes")
def test_what_the_init_of_a_container_image_is_told_costs_a_restart(real: RealBench, own_environment: Path) -> None:
    images = own_environment / "state/images"
    images.mkdir(parents=True)
    workshop = Workshop(images)
    workshop.begin()  # no ENTRYPOINT
    world = World(real, own_environment)
    kernel = pinned(own_environment, "kernel", ImageCache(own_environment / "state").hello().read_bytes())
    rootfs = {"source": f"oci-layout:file://{workshop.layout}", "sha256": workshop.digest()}
    world.set("image", "web")
    world.set("boot", {"kernel": kernel, "rootfs": rootfs})
    order = world.host.next_order(VM, world.desired())
    assert order is not None
    assert "neither an ENTRYPOINT nor a CMD" in str(world.host.agent.execute(order).error)
    for path, value, words in (
        ("command", ["sh", "-c", "exit 1"], "mikrom.arg=sh mikrom.arg=-c mikrom.arg=exit%201"),
        ("env.GREETING", "hi", "mikrom.env=GREETING=hi"),
        ("drives.data", {"size_mib": 4, "mount": "/data"}, "mikrom.mount=/dev/vdb:/data"),
        ("drives.data.mount", "/srv", "mikrom.mount=/dev/vdb:/srv"),
        ("boot.rootfs.size_mib", 100, ""),
    ):
        world.set(path, value)
        mend(world, path, "start" if path == "command" else "restart")
        assert words in world.boot_args()
        assert seen(world).drift == ()
    assert Path(world.disks()["rootfs"]).stat().st_size == 100 * MIB
    assert subprocess.run(["e2fsck", "-fn", world.disks()["data"]], capture_output=True, check=False).returncode == 0
    for path in ("command", "env"):
        world.set(path, type(world.fields[path])())
    world.set("boot.rootfs.init", "image")
    mend(world, "boot.rootfs.init", "restart")
    assert " init=/.mikrom/init mikrom.init=/sbin/init" in world.boot_args()


def test_a_changed_state_is_seen_and_kept(bench: Bench, own_environment: Path) -> None:
    world = World(bench, own_environment)
    world.host.created(VM, world.desired())
    record = world.host.record(VM)
    undone_by: dict[str, Callable[[], object]] = {
        "paused": lambda: bench.driver.set_paused(record, paused=False, deadline_s=DEADLINE_S),
        "stopped": lambda: bench.driver.start(record, deadline_s=DEADLINE_S),
        "running": lambda: bench.driver.stop(record, grace_s=0),
    }
    for state, undo in undone_by.items():
        world.set("state", state)
        for undone in (False, True):
            if undone:
                undo()
            mend(world, "state")
            assert (seen(world).phase, len(bench.pids(VM))) == (state, int(state != "stopped"))


def test_every_row_with_a_test_of_its_own_has_it() -> None:
    assert {row.test for row in ROWS.values() if row.test} <= globals().keys()

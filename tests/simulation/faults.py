"""What goes wrong, and what people do, at any moment of a simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mikrom_reconcile.core.model.desired import Machine as Sizes
from tests.simulation.machine import BAD, VMM, Machine
from tests.simulation.world import World

Fault = Callable[[World], None]


def worker_is_killed(world: World) -> None:
    """At one of its next system calls."""
    _dies(world, power_fails=False)


def power_fails(world: World) -> None:
    _dies(world, power_fails=True)


def _dies(world: World, *, power_fails: bool) -> None:
    worker = _any_machine(world).worker
    if worker is not None and worker.alive:
        worker.dies_at = worker.calls + world.fate.randint(1, 40)
        worker.power_fails = power_fails


def host_is_off(world: World) -> None:
    machine = _any_machine(world)
    if machine.is_on:
        machine.power_off()
        world.clock.at(_some(world, 5.0, 200.0), lambda: _is_on_again(world, machine))


def host_is_given_up(world: World) -> None:
    """A person says that a host that is off is off for good; some day it is back for all that."""
    off = [machine for machine in world.machines.values() if not machine.is_on]
    if off:
        machine = world.fate.choice(off)
        world.given_up.add(machine.name)
        for project in ("shop", "bank"):
            _any_control(world).asked(project, world.wanted, assume_dead=(machine.name,))


def _is_on_again(world: World, machine: Machine) -> None:
    if machine.is_on:
        return
    if machine.name in world.given_up and (world.broker.is_silent or world.clock.now < machine.cut_until):
        world.clock.at(10.0, lambda: _is_on_again(world, machine))  # it has to hear that it was given up
        return
    machine.boot()


def host_is_cut_off(world: World) -> None:
    _any_machine(world).cut_until = world.clock.now + _some(world, 5.0, 120.0)


def worker_stands_still(world: World) -> None:
    worker = _any_machine(world).worker
    if worker is not None:
        worker.frozen_until = world.clock.now + _some(world, 1.0, 60.0)


def control_is_killed(world: World) -> None:
    control = _any_control(world)
    if control.process.alive:
        control.kill()


def control_stands_still(world: World) -> None:
    _any_control(world).process.frozen_until = world.clock.now + _some(world, 1.0, 60.0)


def control_is_cut_off(world: World) -> None:
    _any_control(world).process.cut_until = world.clock.now + _some(world, 5.0, 60.0)


def control_is_behind(world: World) -> None:
    _any_control(world).behind_s = world.fate.choice([0.0, 30.0, 90.0])


def broker_is_silent(world: World) -> None:
    world.broker.is_silent = True
    world.clock.at(_some(world, 2.0, 60.0), lambda: setattr(world.broker, "is_silent", False))


def broker_forgets(world: World) -> None:
    if not world.given_up:  # else nobody would know of that any more
        world.broker.forget()


def messages_go_astray(world: World) -> None:
    world.broker.lost, world.broker.doubled, world.broker.late = 0.1, 0.2, 0.3
    world.clock.at(_some(world, 10.0, 60.0), lambda: _messages_arrive(world))


def _messages_arrive(world: World) -> None:
    world.broker.lost, world.broker.doubled, world.broker.late = 0.0, world.doubled, 0.0


def disk_is_full(world: World) -> None:
    disk = _any_machine(world).disk
    disk.is_full = True
    world.clock.at(_some(world, 5.0, 60.0), lambda: setattr(disk, "is_full", False))


def memory_is_short(world: World) -> None:
    _any_machine(world).lacks_memory_until = world.clock.now + _some(world, 5.0, 60.0)


def clock_jumps(world: World) -> None:
    _any_machine(world).clock_off_s = world.fate.choice([-86400.0, -60.0, 0.0, 60.0, 86400.0])


def vmm_dies(world: World) -> None:
    if found := _any_vmm(world):
        end: Any = world.fate.choice(["crashed", "killed", "clean", "oom"])
        found[0].end(found[1], end, "by itself")


def vmm_hangs(world: World) -> None:
    if found := _any_vmm(world):
        found[1].is_hung = True


def vmm_is_changed(world: World) -> None:
    """By somebody, past everything."""
    if found := _any_vmm(world):
        found[1].machine = Sizes(mem_size_mib=7)


def record_is_edited(world: World) -> None:
    """By somebody, or gone; its copy is as it was."""
    if found := _any_vmm(world):
        machine, vmm = found
        place, copy = (f"{machine.state_dir}/{name}" for name in (f"vms/{vmm.vm}/record.json", f"copies/{vmm.vm}.json"))
        record, kept = machine.disk.find(place), machine.disk.find(copy)
        if record is not None and kept is not None and record.data.rstrip() == kept.data == kept.synced:
            machine.edited.add(vmm.vm)
            record.data = record.data.replace(b"running", b"stopped")


def specs_change(world: World) -> None:
    chance = world.fate
    hosts = dict(world.wanted.hosts)
    hosts[chance.choice(sorted(hosts))] = chance.choice(["", "", "drain", "cordon"])
    changes: list[dict[str, Any]] = [
        {"web": chance.randint(1, 12)}, {"api": chance.randint(1, 4)}, {"vault": chance.randint(1, 3)},
        {"args": f"v{chance.randint(1, 9)}"}, {"args": f"v{chance.randint(1, 9)} {BAD}"},
        {"mem_size_mib": chance.choice([16, 32])}, {"has_db": chance.random() < 0.5},
        {"has_lifecycle": chance.random() < 0.5}, {"has_claim": chance.random() < 0.3}, {"hosts": tuple(hosts.items())},
    ]  # fmt: skip
    world.change(**chance.choice(changes))


def protected_fleet_is_dropped(world: World) -> None:
    """In steps, and with everything allowed."""
    world.change(has_db=True, has_lifecycle=False)
    world.clock.at(40.0, lambda: world.change(has_db=False))
    world.clock.at(80.0, lambda: _any_control(world).asked("shop", world.wanted, prune_max="100%"))


def person_applies(world: World) -> None:
    chance = world.fate
    options: dict[str, Any] = chance.choice([{}, {}, {"retry": True}, {"prune_max": "100%"}])
    _any_control(world).asked(chance.choice(["shop", "bank"]), world.wanted, **options)


def person_names_vms(world: World) -> None:
    chance = world.fate
    verb = chance.choice(["stop", "start", "restart", "pause", "resume"])
    name = chance.choice(["web-*", "web-000", "api-*", "db-000", "vault-*"])
    project = "bank" if name == "vault-*" else "shop"
    _any_control(world).asked(project, world.wanted, verb=verb, names=(name,))


def project_is_destroyed(world: World) -> None:
    _any_control(world).asked(world.fate.choice(["shop", "bank"]), world.wanted, destroy=True)


FAULTS: tuple[Fault, ...] = (
    worker_is_killed, worker_is_killed, power_fails, power_fails, host_is_off, host_is_given_up, host_is_cut_off,
    worker_stands_still, control_is_killed, control_stands_still, control_is_cut_off, control_is_behind,
    broker_is_silent, broker_forgets, messages_go_astray, messages_go_astray, disk_is_full, memory_is_short,
    clock_jumps, vmm_dies, vmm_dies, vmm_hangs, vmm_is_changed, record_is_edited, person_applies, person_names_vms,
    specs_change, specs_change, specs_change, project_is_destroyed,
    protected_fleet_is_dropped,
)  # fmt: skip


def _some(world: World, least_s: float, most_s: float) -> float:
    return world.fate.uniform(least_s, most_s)


def _any_machine(world: World) -> Machine:
    return world.fate.choice(list(world.machines.values()))


def _any_control(world: World) -> Any:
    return world.fate.choice(world.controls)


def _any_vmm(world: World) -> tuple[Machine, VMM] | None:
    found = [(machine, vmm) for machine in world.machines.values() for vmm in machine.vmms.values()]
    running = [(machine, vmm) for machine, vmm in found if vmm.status == "running"]
    return world.fate.choice(running) if running else None

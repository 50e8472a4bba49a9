"""Properties of placement, judged by an oracle that adds up what is really on the hosts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import pytest
import yaml

from mikrom_reconcile.core.model.desired import Machine, Policy, VMSpec
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.core.model.observed import Capacity, Placements
from mikrom_reconcile.core.model.plan import Plan, RunOverrides
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.core.planning.context import PlanResult
from mikrom_reconcile.core.planning.planner import make_plan, prepare
from mikrom_reconcile.wiring import schemas
from tests.properties.chance import seeds
from tests.properties.world import Truth, World

SEEDS = pytest.mark.parametrize("seed", seeds(60))
RACKS = ("a", "b", "c")


@dataclass
class Site:
    """Hosts with what decides placement, fleets, and what is there already."""

    chance: Random
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    fleets: dict[str, dict[str, Any]] = field(default_factory=dict)
    there: dict[str, dict[str, Truth]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number in range(self.chance.randint(2, 6)):
            self.hosts[f"hv{number}"] = {
                "vars": {"rack": self.chance.choice(RACKS), "gen": self.chance.randint(1, 3)},
                "state": self.chance.choice(["active", "active", "active", "cordon", "drain"]),
                "capacity": {"mem_size_mib": self.chance.choice([64, 128, 256, 1024]), "vcpu_count": 4},
                "overcommit": {"vcpu_count": self.chance.choice([1, 2, 4])},
            }
        for name in ("api", "web"):
            placement: dict[str, Any] = {}
            if self.chance.random() < 0.5:
                placement["constraint"] = [{"attribute": "host.gen", "operator": ">=", "value": 2}]
            if self.chance.random() < 0.5:
                placement["affinity"] = [{"attribute": "host.rack", "value": "b", "weight": 10}]
            if self.chance.random() < 0.5:
                placement["spread"] = [{"attribute": "host.rack", "max_skew": self.chance.randint(1, 3)}]
            machine = {"mem_size_mib": self.chance.choice([16, 32, 64]), "vcpu_count": self.chance.randint(1, 2)}
            self.fleets[name] = {
                "replicas": self.chance.randint(0, 8),
                "template": {"image": "hello", "machine": machine},
                "placement": placement,
            }
        self.there = {host: {} for host in self.hosts}
        for name in [name for fleet in self.fleets for name in self.names(fleet)]:
            if self.chance.random() < 0.6:
                self.there[self.chance.choice(list(self.hosts))][name] = self.truth(name.rpartition("-")[0])
        self.there[self.chance.choice(list(self.hosts))]["other"] = self.truth("web", project="theirs")

    def names(self, fleet: str) -> list[str]:
        return [f"{fleet}-{index:03d}" for index in range(self.fleets[fleet]["replicas"])]

    def truth(self, fleet: str, project: str = "default") -> Truth:
        spec = VMSpec(image="hello", machine=msgspec.convert(self.machine(fleet), Machine), boot_args="console=ttyS0")
        policy = Policy()
        digest = spec_digest(project=project, fleet=fleet, state="running", spec=spec, policy=policy)
        return Truth(project, fleet, "running", spec, policy, digest, "running")

    def machine(self, fleet: str) -> dict[str, int]:
        machine: dict[str, int] = self.fleets[fleet]["template"]["machine"]
        return machine

    def world(self) -> World:
        return World(hosts={host: dict(vms) for host, vms in self.there.items()})

    def tree(self, chance: Random | None = None) -> SourceTree:
        hosts = list(self.hosts.items())
        fleets = list(self.fleets.items())
        if chance:
            chance.shuffle(hosts)
            chance.shuffle(fleets)
        head = {"apiVersion": "mikrom/v1"}
        bodies: list[dict[str, Any]] = [
            {**head, "kind": "Inventory", "metadata": {"name": "all"}, "spec": {"hosts": dict(hosts)}},
            *({**head, "kind": "Fleet", "metadata": {"name": name}, "spec": spec} for name, spec in fleets),
        ]
        files = [SourceFile(path=f"{n}.yml", text=yaml.safe_dump(body)) for n, body in enumerate(bodies)]
        return SourceTree(revision="r1", files=tuple(files))

    # ---- the oracle ---------------------------------------------------------------------------------------------

    def may_be(self, fleet: str, host: str) -> bool:
        needs = self.fleets[fleet]["placement"].get("constraint")
        return self.hosts[host]["state"] != "drain" and (not needs or self.hosts[host]["vars"]["gen"] >= 2)

    def limits(self, host: str) -> tuple[int, int]:
        said = self.hosts[host]
        return said["capacity"]["mem_size_mib"], said["capacity"]["vcpu_count"] * said["overcommit"]["vcpu_count"]

    def taken(self, world: World, host: str) -> tuple[int, int]:
        machines = [truth.spec.machine for truth in world.hosts[host].values()]
        return sum(each.mem_size_mib for each in machines), sum(each.vcpu_count for each in machines)

    def fits(self, world: World, fleet: str, host: str) -> bool:
        need = self.machine(fleet)
        (mem, vcpus), (mem_limit, vcpu_limit) = self.taken(world, host), self.limits(host)
        return mem + need["mem_size_mib"] <= mem_limit and vcpus + need["vcpu_count"] <= vcpu_limit


def look(site: Site, world: World, memory: Placements, chance: Random | None = None) -> PlanResult:
    asked = prepare(validate_specs(site.tree(chance), schemas(), here="localhost"), memory, here="hv0")
    return make_plan(asked, world.observe(asked.queries), RunOverrides(prune_max="100%"))


def settle(site: Site, world: World) -> Plan:
    """Pass after pass until nothing is left to do; what holds for each pass is checked on the way."""
    memory = Placements()
    limits = {host: site.limits(host) for host in site.hosts}
    ceiling = {
        host: tuple(map(max, limits[host], site.taken(world, host))) for host in site.hosts
    }  # what was too much before may stay
    for _ in seeds(60):
        decision = look(site, world, memory)
        memory = decision.placements
        if not decision.plan.actions:
            return decision.plan
        for action in site.chance.sample(decision.plan.actions, len(decision.plan.actions)):
            if action.verb == "create":
                fleet = action.vm.rpartition("-")[0]
                assert site.hosts[action.host]["state"] == "active"
                assert site.may_be(fleet, action.host)
            else:  # only what may not stay where it is leaves, and only for a home that it would have had
                assert not site.may_be(action.vm.rpartition("-")[0], action.host)
            assert world.act(action) == "done"
        for host in site.hosts:
            assert all(now <= most for now, most in zip(site.taken(world, host), ceiling[host], strict=True))
    raise AssertionError("no end in 60 passes")


@SEEDS
def test_it_ends_within_capacity_and_what_is_refused_has_no_room_anywhere(seed: int) -> None:
    site = Site(Random(seed))
    world = site.world()
    plan = settle(site, world)
    held = {change.name: change for change in plan.changes}
    for fleet in site.fleets:
        for name in site.names(fleet):
            homes = world.copies(name, "default")
            if name not in held:
                assert len(homes) == 1
                assert site.may_be(fleet, homes[0])
                continue
            assert len(homes) <= 1
            change = held[name]
            assert change.kind == ("blocked" if not homes else change.kind)
            assert change.kind in {"blocked", "wait"}
            open_hosts = [
                host for host in site.hosts if site.hosts[host]["state"] == "active" and site.may_be(fleet, host)
            ]
            if change.kind == "blocked":
                assert not [host for host in open_hosts if site.fits(world, fleet, host)]


@SEEDS
def test_vms_that_may_stay_where_they_are_stay(seed: int) -> None:
    site = Site(Random(seed))
    world = site.world()
    settle(site, world)
    for host, vms in site.there.items():
        for name, truth in vms.items():
            if truth.project != "default" or site.may_be(truth.fleet, host):
                assert world.hosts[host].get(name) == truth


@SEEDS
def test_a_drained_host_ends_empty_where_others_have_room(seed: int) -> None:
    site = Site(Random(seed))
    for said in site.hosts.values():
        said["capacity"]["mem_size_mib"], said["overcommit"]["vcpu_count"] = 1 << 20, 100
        said["vars"]["gen"] = 3
    site.hosts["hv0"]["state"], site.hosts["hv1"]["state"] = "drain", "active"
    world = site.world()
    settle(site, world)
    assert {truth.project for truth in world.hosts["hv0"].values()} <= {"theirs"}


@SEEDS
def test_a_spread_fleet_is_spread_as_far_as_it_says(seed: int) -> None:
    site = Site(Random(seed))
    for said in site.hosts.values():
        said["capacity"]["mem_size_mib"], said["overcommit"]["vcpu_count"], said["state"] = 1 << 20, 100, "active"
    for spec in site.fleets.values():
        spec["placement"]["spread"] = [{"attribute": "host.rack", "max_skew": 2}]
    site.there = {host: {} for host in site.hosts}
    world = site.world()
    settle(site, world)
    for fleet in site.fleets:
        racks = Counter({said["vars"]["rack"]: 0 for host, said in site.hosts.items() if site.may_be(fleet, host)})
        for name in site.names(fleet):
            racks.update(site.hosts[host]["vars"]["rack"] for host in world.copies(name, "default"))
        assert not racks or max(racks.values()) - min(racks.values()) <= 2


@SEEDS
def test_the_order_of_hosts_fleets_and_reports_does_not_matter(seed: int) -> None:
    site = Site(Random(seed))
    world = site.world()
    first = look(site, world, Placements())
    again = look(site, world, Placements(), Random(seed + 1))
    assert msgspec.json.encode(again) == msgspec.json.encode(first)


def test_what_the_host_has_limits_memory_where_the_inventory_says_nothing() -> None:
    site = Site(Random(1))
    for said in site.hosts.values():
        del said["capacity"], said["overcommit"]
        said["state"] = "active"
    site.there = {host: {} for host in site.hosts}
    world = site.world()
    world.capacity = {host: Capacity(vcpu_count=1, mem_size_mib=100) for host in site.hosts}
    plan = look(site, world, Placements()).plan
    for action in plan.actions:
        assert world.act(action) == "done"
    assert all(site.taken(world, host)[0] <= 100 for host in site.hosts)
    assert any(site.taken(world, host)[1] > 1 for host in site.hosts), "vCPUs are not limited"

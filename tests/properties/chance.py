"""Projects and worlds as people and accidents make them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
import yaml

from mikrom_reconcile.core.model.desired import Machine, Policy, State, VMSpec
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.core.model.observed import Drift, Phase, Placements
from tests.properties.world import Truth, World

PROJECT = "mine"
HOSTS = ("hv1", "hv2", "hv3")


def seeds(count: int) -> list[object]:
    """`make test` tries a sixth of them, `make soak` the others."""
    return [seed if seed < count / 6 else pytest.param(seed, marks=pytest.mark.soak) for seed in range(count)]


@dataclass(frozen=True)
class Fleet:
    name: str
    replicas: int
    mem_size_mib: int
    state: str
    prune_max: int | str
    allow_empty: bool

    def names(self) -> list[str]:
        return [f"{self.name}-{index:03d}" for index in range(self.replicas)]

    def spec(self) -> VMSpec:
        machine = Machine(vcpu_count=1, mem_size_mib=self.mem_size_mib)
        return VMSpec(image="hello", machine=machine, boot_args="console=ttyS0")

    def policy(self) -> Policy:
        return Policy(prune_max=self.prune_max, allow_empty=self.allow_empty)

    def document(self) -> dict[str, object]:
        template = {"image": "hello", "machine": {"mem_size_mib": self.mem_size_mib}, "state": self.state}
        return {
            "apiVersion": "mikrom/v1",
            "kind": "Fleet",
            "metadata": {"name": self.name},
            "spec": {
                "replicas": self.replicas,
                "template": template,
                "prune": {"max": self.prune_max, "allow_empty": self.allow_empty},
            },
        }


@dataclass(frozen=True)
class Project:
    whole: bool
    fleets: tuple[Fleet, ...]

    @property
    def name(self) -> str:
        return PROJECT if self.whole else "default"

    def documents(self) -> list[dict[str, object]]:
        head: dict[str, object] = {"apiVersion": "mikrom/v1", "kind": "Project", "metadata": {"name": PROJECT}}
        inventory: dict[str, object] = {
            "apiVersion": "mikrom/v1",
            "kind": "Inventory",
            "metadata": {"name": "all"},
            "spec": {"hosts": dict.fromkeys(HOSTS)},
        }
        return [*([head] if self.whole else []), inventory, *(fleet.document() for fleet in self.fleets)]

    def tree(self, order: list[int] | None = None) -> SourceTree:
        """One file per document, the documents in any order among the files."""
        documents = self.documents()
        chosen = [documents[index] for index in order or range(len(documents))]
        files = tuple(SourceFile(path=f"{number}.yml", text=yaml.safe_dump(body)) for number, body in enumerate(chosen))
        return SourceTree(revision="r1", files=files)


def fleet_of(chance: Random, name: str) -> Fleet:
    return Fleet(
        name=name,
        replicas=chance.randint(0, 12),
        mem_size_mib=chance.choice([16, 32]),
        state=chance.choice(["running", "running", "running", "stopped", "paused", "absent"]),
        prune_max=chance.choice(SHARES),
        allow_empty=chance.random() < 0.5,
    )


def project_of(chance: Random) -> Project:
    names = chance.sample(["api", "db", "web"], chance.randint(1, 3))
    return Project(whole=chance.random() < 0.5, fleets=tuple(fleet_of(chance, name) for name in names))


SHARES: list[int | str] = ["20%", "100%", "50%", 0, 3]
PHASES: dict[State, list[Phase]] = {
    "running": ["running", "running", "running", "running", "running", "running", "crashed", "killed", "exited",
                "failed", "defined", "rebooted", "starting", "paused", "unresponsive", "socket_lost"],
    "stopped": ["stopped", "stopping"],
    "paused": ["paused", "paused", "running", "crashed"],
    "absent": ["deleting"],
}  # fmt: skip


def truth_of(chance: Random, project: Project, name: str) -> Truth:
    """A VM as an earlier run of these or other specs, an accident or somebody else may have left it."""
    owner = chance.choice([project.name] * 4 + ["theirs"])
    fleet_name = name.rpartition("-")[0]
    today = next((fleet for fleet in project.fleets if fleet.name == fleet_name), None)
    fleet = today if today and chance.random() < 0.6 else fleet_of(chance, fleet_name)
    wanted: State = "running" if fleet.state == "running" else "paused" if fleet.state == "paused" else "stopped"
    state: State = wanted if chance.random() < 0.7 else chance.choice(["running", "stopped", "absent"])
    phase = chance.choice(PHASES[state])
    drifted = phase == "running" and chance.random() < 0.15
    return Truth(
        project=owner,
        fleet=fleet.name,
        state=state,
        spec=fleet.spec(),
        policy=fleet.policy(),
        spec_digest=spec_digest(project=owner, fleet=fleet.name, state=state, spec=fleet.spec(), policy=fleet.policy()),
        phase=phase,
        generation=chance.randint(1, 5),
        token=chance.randint(1, 9),
        uid=f"t{chance.randint(0, 10**6)}",
        drift=(Drift(path="machine.mem_size_mib", recorded=fleet.mem_size_mib, actual=7),) if drifted else (),
    )


def world_of(chance: Random, project: Project) -> World:
    """Any mixture of what could be there: wanted and unwanted VMs, twice or on the wrong host, ours or not."""
    names = [f"{fleet}-{index:03d}" for fleet in ("api", "db", "web", "old") for index in range(12)]
    hosts = {
        host: {name: truth_of(chance, project, name) for name in sorted(chance.sample(names, chance.randint(0, 16)))}
        for host in HOSTS
    }
    dark = set(chance.sample(HOSTS, chance.choice([0, 0, 1, 2])))
    return World(hosts=hosts, dark=dark)


def memory_of(chance: Random, world: World, project: str) -> Placements:
    """What the store remembers: everything, or nothing because it was lost."""
    if chance.random() < 0.5:
        return Placements()
    vms = {
        name: host for host, there in world.hosts.items() for name, truth in there.items() if truth.project == project
    }
    return Placements(vms=vms, covers=HOSTS)

"""Guards attacked tick after tick, as Beat runs: unattended, with a memory, and with hosts that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import yaml

from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.errors import SourceError
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.plan import Plan, RunOverrides
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.core.planning.planner import prepare
from mikrom_reconcile.wiring import schemas
from tests.properties.chance import seeds
from tests.properties.world import World, decided

HOSTS = ("hv1", "hv2", "hv3")
TICKS = 12
CONFIRMED = RunOverrides(confirmed=("web",))
UNLIMITED = RunOverrides(prune_max="100%")


def document(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    head = {"apiVersion": "mikrom/v1", "kind": kind, "metadata": {"name": name}}
    return head if kind == "Project" else {**head, "spec": spec}


def fleet(name: str, replicas: int, **spec: Any) -> dict[str, Any]:
    return document("Fleet", name, replicas=replicas, template={"image": "hello"}, **spec)


def inventory(*hosts: str) -> dict[str, Any]:
    return document("Inventory", "all", hosts=dict.fromkeys(hosts or HOSTS))


SHOP = document("Project", "shop")
PROTECTED = {"lifecycle": {"prevent_destroy": True}}
LIFTED = {"lifecycle": {"prevent_destroy": False}}


def empty_world() -> World:
    return World(hosts={host: {} for host in HOSTS})


class Checkout:
    """One source of specs with Beat on it: what its runs remember lives as long as it does."""

    def __init__(self, world: World, *documents: dict[str, Any]) -> None:
        self.world = world
        self.documents = documents
        self.memory = Placements()

    def tick(self, limits: RunOverrides = RunOverrides()) -> Plan:  # noqa: B008 - frozen
        """One unattended run, every action of which is carried out."""
        plan = self.look(limits)
        for action in plan.actions:
            assert self.world.act(action) == "done"
        return plan

    def look(self, limits: RunOverrides) -> Plan:
        files = tuple(SourceFile(path=f"{n}.yml", text=yaml.safe_dump(body)) for n, body in enumerate(self.documents))
        specs = validate_specs(SourceTree(revision="r1", files=files), schemas(), here="localhost")
        asked = prepare(specs, self.memory, here=HOSTS[0])
        decision = decided(asked, self.world.observe, limits)
        self.memory = decision.placements
        return decision.plan


def after_a_first_run(*documents: dict[str, Any]) -> Checkout:
    checkout = Checkout(empty_world(), *documents)
    checkout.tick()
    return checkout


def living(world: World) -> set[str]:
    return {name for vms in world.hosts.values() for name in vms}


def names(fleet_name: str, replicas: int) -> set[str]:
    return {f"{fleet_name}-{index:03d}" for index in range(replicas)}


def flicker(world: World, chance: Random) -> Iterator[int]:
    """Ticks, before each of which any hosts go dark or come back."""
    for tick in range(TICKS):
        world.dark = set(chance.sample(HOSTS, chance.randint(0, len(HOSTS) - 1)))
        yield tick
    world.dark = set()


@pytest.fixture(params=seeds(24))
def chance(request: pytest.FixtureRequest) -> Random:
    return Random(request.param)


def test_emptied_files_are_an_error_and_never_a_plan() -> None:
    files = (SourceFile(path="project.yml", text=""), SourceFile(path="web.yml", text="# metadata: {name: web}\n"))
    with pytest.raises(SourceError, match=r"no document in project\.yml, web\.yml"):
        validate_specs(SourceTree(revision="r2", files=files), schemas(), here="localhost")


@pytest.mark.parametrize("left", [[SHOP], [SHOP, inventory()], [SHOP, inventory(), fleet("api", 2)]])
def test_a_vanished_fleet_never_trickles_away(left: list[dict[str, Any]], chance: Random) -> None:
    checkout = after_a_first_run(SHOP, inventory(), fleet("web", 10))
    checkout.documents = tuple(left)
    for _ in flicker(checkout.world, chance):
        checkout.tick()
    assert living(checkout.world) >= names("web", 10)


def test_a_fleet_of_one_that_vanished_stays_too(chance: Random) -> None:
    checkout = after_a_first_run(SHOP, inventory(), fleet("web", 1), fleet("db", 1))
    checkout.documents = (SHOP, inventory())
    for _ in flicker(checkout.world, chance):
        checkout.tick()
    assert living(checkout.world) == {"web-000", "db-000"}


def test_replicas_0_removes_nothing_however_often_it_is_asked(chance: Random) -> None:
    checkout = after_a_first_run(SHOP, inventory(), fleet("web", 10))
    checkout.documents = (SHOP, inventory(), fleet("web", 0))
    for _ in flicker(checkout.world, chance):
        checkout.tick()
    assert living(checkout.world) == names("web", 10)
    checkout.tick(CONFIRMED)
    assert living(checkout.world) == set()


def test_a_renamed_project_removes_nothing_and_doubles_nothing(chance: Random) -> None:
    checkout = after_a_first_run(SHOP, inventory(), fleet("web", 6))
    before = checkout.world.copy().hosts
    renamed = Checkout(checkout.world, document("Project", "store"), inventory(), fleet("web", 6))
    for _ in flicker(checkout.world, chance):
        plan = renamed.tick()
        assert plan.actions == ()
    assert checkout.world.hosts == before
    assert {refusal.rule for refusal in renamed.tick().refusals} == {"name-conflict"}


def test_a_name_that_is_taken_where_the_fleet_may_not_go_stays_taken(chance: Random) -> None:
    world = empty_world()
    Checkout(world, document("Project", "bank"), inventory(), fleet("web", 2, hosts="hv2")).tick()
    shop = Checkout(world, SHOP, inventory(), fleet("web", 3, hosts="hv1"))
    shop.tick()
    for _ in flicker(world, chance):
        shop.tick()
    assert [world.copies(name, "shop") for name in sorted(names("web", 3))] == [[], [], ["hv1"]]


def test_two_checkouts_of_different_projects_leave_each_other_alone(chance: Random) -> None:
    world = empty_world()
    shop = Checkout(world, SHOP, inventory(), fleet("web", 4), fleet("db", 2))
    bank = Checkout(world, document("Project", "bank"), inventory(), fleet("api", 4), fleet("db", 3))
    shop.tick()
    bank.tick()
    before = world.copy().hosts
    assert living(world) == names("web", 4) | names("api", 4) | names("db", 3)
    for _ in flicker(world, chance):
        for checkout in chance.sample([shop, bank], 2):
            assert not checkout.tick().actions
    assert world.hosts == before


def test_two_checkouts_of_one_project_with_different_fleets_do_not_empty_each_other(chance: Random) -> None:
    world = empty_world()
    left, right = (
        Checkout(world, SHOP, inventory(), fleet("web", 5)),
        Checkout(world, SHOP, inventory(), fleet("api", 5)),
    )
    left.tick()
    right.tick()
    for _ in flicker(world, chance):
        for checkout in chance.sample([left, right], 2):
            checkout.tick()
    assert living(world) == names("web", 5) | names("api", 5)


def test_without_a_project_two_checkouts_do_not_even_try(chance: Random) -> None:
    world = empty_world()
    left, right = Checkout(world, inventory(), fleet("web", 5)), Checkout(world, inventory(), fleet("api", 5))
    left.tick()
    right.tick()
    for _ in flicker(world, chance):
        for checkout in chance.sample([left, right], 2):
            assert not any(change.kind == "delete" or change.wanted == "delete" for change in checkout.tick().changes)
    assert living(world) == names("web", 5) | names("api", 5)


def test_a_renamed_fleet_keeps_its_old_vms_until_somebody_says_so(chance: Random) -> None:
    checkout = after_a_first_run(SHOP, inventory(), fleet("web", 5))
    checkout.documents = (SHOP, inventory(), fleet("www", 5))
    for _ in flicker(checkout.world, chance):
        checkout.tick()
    checkout.tick()
    assert living(checkout.world) == names("web", 5) | names("www", 5)
    checkout.tick(CONFIRMED)
    assert living(checkout.world) == names("www", 5)


def test_a_removed_protection_block_protects_until_an_explicit_false() -> None:
    checkout = after_a_first_run(SHOP, inventory(), fleet("web", 5, **PROTECTED))
    for documents in (fleet("web", 5), fleet("web", 0), fleet("api", 1)):
        checkout.documents = (SHOP, inventory(), documents)
        for limits in (RunOverrides(), CONFIRMED, RunOverrides(prune_max="100%"), UNLIMITED) * 2:
            checkout.tick(limits)
        assert living(checkout.world) >= names("web", 5)

    checkout.documents = (SHOP, inventory(), fleet("web", 0, **LIFTED))
    assert {action.verb for action in checkout.tick(UNLIMITED).actions if action.vm != "api-000"} == {"update"}
    assert living(checkout.world) == names("web", 5)
    checkout.tick()
    assert living(checkout.world) == names("web", 5), "lifted, and the share holds still"
    checkout.tick(CONFIRMED)
    assert living(checkout.world) == set()


def test_restarts_and_moves_keep_the_protection(chance: Random) -> None:
    checkout = after_a_first_run(SHOP, inventory(), fleet("web", 3, **PROTECTED))
    for tick in range(TICKS):
        template = {"image": "hello", "boot_args": f"tick={tick}"}
        pattern = chance.choice(["all", "hv1", "hv2:hv3"])
        web = document("Fleet", "web", replicas=3, template=template, hosts=pattern)
        checkout.documents = (SHOP, inventory(), web)
        checkout.tick(UNLIMITED)
    assert all(truth.policy.prevent_destroy for vms in checkout.world.hosts.values() for truth in vms.values())
    assert [action for action in checkout.world.acted if action.verb == "delete"] == []


def test_every_removal_was_within_the_share_of_what_the_hosts_had(chance: Random) -> None:
    """A fleet that shrinks goes down in no larger steps than its share, whatever is asked from one tick to the next."""
    checkout = after_a_first_run(SHOP, inventory(), fleet("web", 20))
    for _ in range(TICKS):
        checkout.documents = (SHOP, inventory(), fleet("web", chance.randint(0, 20)))
        before = len(living(checkout.world))
        deleted = [action for action in checkout.tick().actions if action.verb == "delete"]
        assert len(deleted) <= max(1, before // 5)
        assert not deleted or len(deleted) < before


@pytest.mark.parametrize("seed", seeds(60))
def test_no_vm_is_made_twice_whatever_goes_dark_and_whatever_is_lost(seed: int) -> None:
    """Hosts come and go, patterns change, orders and memories get lost, and another project takes names and leaves."""
    chance = Random(seed)
    world = empty_world()
    shop, bank = Checkout(world), Checkout(world)
    for _ in range(20):
        world.dark = set(chance.sample(HOSTS, chance.choice([0, 0, 1, 2])))
        for checkout, project in ((shop, SHOP), (bank, document("Project", "bank"))):
            replicas = 4 if checkout is shop else chance.choice([0, 0, 0, 2])
            hosts = chance.choices(["all", "hv1", "hv2", "hv1:hv2", "!hv1"], k=2)
            checkout.documents = (project, inventory(), fleet("web", replicas, hosts=hosts[0]),
                                  fleet("api", replicas, hosts=hosts[1]))  # fmt: skip
            if chance.random() < 0.1:
                checkout.memory = Placements()
            for action in checkout.look(UNLIMITED).actions:
                if chance.random() < 0.8:
                    world.act(action)
        for name in living(world):
            assert len(world.copies(name, "shop")) <= 1, name

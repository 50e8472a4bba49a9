"""What is remembered of a question, and when it is enough; tests/properties shows that the plan is the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mikrom_reconcile.core.model.observed import Capacity, HostReport, HostView, ObservedState, Placements
from mikrom_reconcile.core.model.specs import SourceFile, SourceTree
from mikrom_reconcile.core.planning.guards import Limits
from mikrom_reconcile.core.planning.known_question import KnownQuestion, key_of, known_question, narrowed
from mikrom_reconcile.core.planning.planner import Decision, question
from mikrom_reconcile.core.specs.load import read_specs, some_specs
from mikrom_reconcile.wiring import schemas
from tests.samples import NOW, observed

FLEET = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: %s}\nspec: {replicas: 2, template: {image: hello}}\n"
TREE = SourceTree(
    revision="r", files=tuple(SourceFile(path=f"{name}.yml", text=FLEET % name) for name in ("db", "web"))
)
PLACED = Placements(vms=dict.fromkeys(("db-000", "db-001", "web-000", "web-001"), "hv1"))
SPECS = read_specs(TREE, schemas())
ASKED = question(SPECS, PLACED, here="hv1")
(QUERY,) = ASKED.queries.values()
OTHERWISE = QUERY.known | {"web": "1:x"}


def known() -> KnownQuestion:
    found = known_question(ASKED)
    assert found is not None
    return found


def seen(**fields: Any) -> ObservedState:
    report: dict[str, Any] = {"digests": QUERY.known, "capacity": Capacity(vcpu_count=1, mem_size_mib=1)} | fields
    view = HostView(host="hv1", report=HostReport(host="hv1", observed_at=NOW, **report))
    return ObservedState(taken_at=NOW, hosts=(view,))


@pytest.mark.parametrize(
    ("digests", "fleets"),
    [
        (QUERY.known, set()),
        (OTHERWISE, {"web"}),
        ({}, {"db", "web"}),
        (QUERY.known | {"old": "1:x"}, {"old"}),
    ],
)
def test_fleets_differ_that_a_host_has_otherwise_or_not_at_all(digests: dict[str, str], fleets: set[str]) -> None:
    assert known().differing(seen(digests=digests)) == frozenset(fleets)


def test_of_a_dark_host_nobody_can_say_what_differs() -> None:
    dark = ObservedState(taken_at=NOW, hosts=(HostView(host="hv1", error="gave no answer"),))
    assert known().differing(dark) is None


@pytest.mark.parametrize(
    "placements",
    [
        Placements(),
        Placements(vms={**PLACED.vms, "old-000": "hv1"}),
        Placements(vms={**PLACED.vms, "web-001": "hv2"}),
    ],
)
def test_a_question_is_not_remembered_unless_every_vm_is_where_it_is_remembered_and_no_other(
    placements: Placements,
) -> None:
    assert known_question(question(SPECS, placements, here="hv1")) is None
    assert not known().follows_from(placements)


def decided(*fleets: str, **fields: Any) -> Decision | None:
    some = some_specs(TREE, schemas(), None, fleets)
    return narrowed(known(), some, seen(**fields), PLACED, Limits(), "hv1")


def row(name: str, **fields: Any) -> Any:
    fleet, (vm, *_) = name.partition("-")[0], [vm for vm in ASKED.desired.vms if vm.name == "web-000"]
    own = {"project": "default", "fleet": fleet, "host": "hv1", "spec": vm.spec, "spec_digest": vm.spec_digest}
    return observed(name, **(own | fields))


def test_what_differs_is_planned_and_all_else_is_unchanged() -> None:
    found = decided("web", digests=OTHERWISE, vms=(row("web-000", phase="crashed"),), settled={"web": ("web-001",)})
    assert found is not None
    assert [(change.kind, change.name) for change in found.plan.changes] == [("start", "web-000")]
    assert found.plan.unchanged == {"hv1": 3}
    assert found.placements == msgspec.structs.replace(PLACED, covers=("hv1",))


def test_warnings_of_all_specs_are_told_though_only_some_are_looked_at() -> None:
    warned = msgspec.structs.replace(known(), warnings=("fleet db: serial",))
    some = some_specs(TREE, schemas(), None, {"web"})
    found = narrowed(
        warned, some, seen(digests=OTHERWISE, settled={"web": ("web-000", "web-001")}), PLACED, Limits(), "hv1"
    )
    assert found is not None
    assert found.plan.warnings == ("fleet db: serial",)


def test_where_nothing_differs_the_plan_is_empty_and_of_the_same_project() -> None:
    found = decided()
    assert found is not None
    assert (found.plan.project, found.plan.changes, found.plan.unchanged) == ("default", (), {"hv1": 4})


@pytest.mark.parametrize(
    ("fleets", "fields"),
    [
        (("web",), {"vms": (row("web-000"), row("web-001"), row("old-000"))}),
        (("web",), {"vms": (row("web-000"), row("db-000"))}),
        (("web",), {"vms": (row("web-000", host="hv2"), row("web-001"))}),
        (("web",), {"vms": (row("web-000"),)}),  # web-001 is gone
        (("web",), {"settled": {"web": ("web-000", "web-001", "web-002")}}),
    ],
    ids=["unwanted", "of another fleet", "elsewhere", "gone", "told unexpectedly"],
)
def test_what_may_concern_others_is_left_to_a_look_at_everything(fleets: tuple[str, ...], fields: Any) -> None:
    assert decided(*fleets, digests=OTHERWISE, **fields) is None


def test_another_build_of_the_same_release_may_have_asked_for_something_else() -> None:
    other = msgspec.structs.replace(known(), queries={"hv1": msgspec.structs.replace(QUERY, known=OTHERWISE)})
    some = some_specs(TREE, schemas(), None, {"web"})
    assert narrowed(other, some, seen(digests=OTHERWISE), PLACED, Limits(), "hv1") is None


@pytest.mark.parametrize(
    "other",
    [
        {"tree": SourceTree(revision="r", files=TREE.files[:1])},
        {"tree": SourceTree(revision="r", files=(SourceFile(path="api.yml", text=FLEET % "db"), TREE.files[1]))},
        {"tree": SourceTree(revision="r", files=(SourceFile(path="db.yml", text=FLEET % "d"), TREE.files[1]))},
        {"extra_vars": {"a": 1}},
        {"schemas": {}},
        {"here": "hv2"},
    ],
)
def test_what_gives_other_specs_has_another_key(other: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"tree": TREE, "extra_vars": {}, "schemas": schemas(), "here": "hv1"}
    assert key_of(**asked) == key_of(**asked | {"tree": msgspec.structs.replace(TREE, revision="r2")})
    assert key_of(**asked | other) != key_of(**asked)

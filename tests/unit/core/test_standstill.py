"""What is remembered of a plan that found nothing to do; tests/properties shows that it is the plan of any moment."""

from __future__ import annotations

from typing import Any

import pytest

from mikrom_reconcile.core.model.observed import Capacity, HostReport, HostView, ObservedState, Placements
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.core.model.specs import SourceFile, SourceTree
from mikrom_reconcile.core.plan import question
from mikrom_reconcile.core.specs import read_specs
from mikrom_reconcile.core.standstill import Standstill, key_of, standstill
from mikrom_reconcile.wiring import schemas
from tests.samples import NOW, change, observed, plan, refusal

FLEET = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 1, template: {image: hello}}\n"
TREE = SourceTree(revision="r", files=(SourceFile(path="web.yml", text=FLEET),))
ASKED = question(read_specs(TREE, schemas()), Placements(vms={"web-000": "hv1"}), here="hv1")
(QUERY,) = ASKED.queries.values()


def view(**fields: Any) -> HostView:
    known: dict[str, Any] = {"digests": QUERY.known, "capacity": Capacity(vcpu_count=1, mem_size_mib=1)}
    return HostView(host="hv1", report=HostReport(**{"host": "hv1", "observed_at": NOW, **known, **fields}))


def remembered() -> Standstill:
    found = standstill(ASKED, plan())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("views", "holds"),
    [
        ((view(),), True),
        ((view(digests={}),), False),
        ((view(digests=QUERY.known | {"old": "1:x"}),), False),
        ((view(vms=(observed("web-000"),)),), False),
        ((HostView(host="hv1", error="gave no answer"),), False),
        ((), False),
    ],
)
def test_it_holds_if_every_host_answers_just_what_was_expected(views: tuple[HostView, ...], holds: bool) -> None:  # noqa: FBT001
    assert remembered().holds(ObservedState(taken_at=NOW, hosts=views)) is holds


@pytest.mark.parametrize(
    "found",
    [
        plan(change("web-000")),
        plan(refusals=(refusal("web", "no"),)),
        plan(warnings=("look",)),
        plan(unreachable={"hv2": "dark"}),
    ],
)
def test_a_plan_with_something_to_look_at_is_not_remembered(found: Any) -> None:
    assert standstill(ASKED, found) is None


def request(**fields: Any) -> RunRequest:
    return RunRequest(**{"run_id": "r", "origin": "a test", "tree": TREE, **fields})


def test_who_asks_does_not_matter() -> None:
    assert key_of(request(run_id="x", origin="beat"), schemas(), "hv1") == key_of(request(), schemas(), "hv1")


@pytest.mark.parametrize(
    "other",
    [
        {"tree": SourceTree(revision="r2", files=TREE.files)},
        {"tree": SourceTree(revision="r", files=(SourceFile(path="web.yml", text=FLEET + "\n"),))},
        {"tree": SourceTree(revision="r", files=(SourceFile(path="api.yml", text=FLEET),))},
        {"extra_vars": {"a": 1}},
        {"limit": "web"},
        {"destroy": True},
    ],
)
def test_what_is_asked_does(other: dict[str, Any]) -> None:
    assert key_of(request(**other), schemas(), "hv1") != key_of(request(), schemas(), "hv1")


def test_where_it_is_asked_and_by_which_schemas_does() -> None:
    assert key_of(request(), schemas(), "hv2") != key_of(request(), schemas(), "hv1")
    assert key_of(request(), {}, "hv1") != key_of(request(), schemas(), "hv1")

"""The story of one VM: what is wanted and from where, what was observed, which rule, what happens or why nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.desired import Machine, Policy, VMSpec
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.observed import (
    Capacity,
    Drift,
    HostReport,
    HostView,
    ObservedState,
    ObservedVM,
    Placements,
)
from mikrom_reconcile.core.model.plan import RunOverrides
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.core.planning.planner import make_plan, prepare
from mikrom_reconcile.core.specs.load import Specs
from mikrom_reconcile.output.explanation import Explanation, explain
from tests.samples import NOW, observed

WEB = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 2
  vars: {mem: 32, size: "${mem}"}
  template: {image: hello, machine: {mem_size_mib: "${size}"}, STATE}
"""
PROJECT = "---\napiVersion: mikrom/v1\nkind: Project\nmetadata: {name: demo}\n"


def specs_of(text: str = WEB, *, state: str = "", whole: bool = True) -> Specs:
    text = text.replace(", STATE", state) + (PROJECT if whole else "")
    return validate_specs(
        SourceTree(revision="r1", files=(SourceFile(path="web.yml", text=text),)), wiring.schemas(), here="localhost"
    )


def as_wanted(specs: Specs, **changed: Any) -> tuple[ObservedVM, ...]:
    """Rows of everything that the specs want, web-000 with what is `changed`."""
    return tuple(
        observed(
            vm.name, project=vm.project, state=vm.state, phase=vm.state, spec=vm.spec, policy=vm.policy,
            spec_digest=vm.spec_digest,
        ) if vm.name != "web-000" else observed(
            vm.name, **{"project": vm.project, "state": vm.state, "phase": vm.state, "spec": vm.spec,
                        "policy": vm.policy, "spec_digest": vm.spec_digest, **changed},
        )
        for vm in render_all(specs, here="localhost")
    )  # fmt: skip


def story(name: str, specs: Specs, rows: tuple[ObservedVM, ...], error: str = "") -> Explanation | None:
    report = HostReport(host="localhost", observed_at=NOW, capacity=Capacity(vcpu_count=1, mem_size_mib=1024), vms=rows)
    view = HostView(host="localhost", error=error) if error else HostView(host="localhost", report=report)
    placements = Placements(vms={row.name: row.host for row in rows}, covers=("localhost",))
    put = prepare(specs, placements, here="localhost")
    plan = make_plan(put, ObservedState(taken_at=NOW, hosts=(view,)), RunOverrides()).plan
    return explain(name, specs, plan, [view], here="localhost")


def told(name: str, specs: Specs, rows: tuple[ObservedVM, ...], error: str = "") -> Explanation:
    found = story(name, specs, rows, error)
    assert found is not None
    return found


def test_a_changed_field_is_followed_from_its_line_through_its_variables_to_the_action() -> None:
    specs = specs_of()
    before = VMSpec(image="hello", machine=Machine(mem_size_mib=16), boot_args="console=ttyS0")
    found = told("web-000", specs, as_wanted(specs, spec=before, spec_digest="1:other"))
    assert (found.revision, found.place) == ("r1", "web.yml:3:18")
    (field,) = [field for field in found.fields if field.path == "machine.mem_size_mib"]
    assert field.wanted is not None
    assert (field.wanted.value, field.wanted.written, field.recorded, field.actual) == (32, "${size}", 16, 16)
    assert field.wanted.place == "web.yml:7:52 template"
    assert [(used.name, used.value, used.origin) for used in field.wanted.variables] == [
        ("mem", 32, "fleet web"), ("size", 32, "fleet web"),
    ]  # fmt: skip
    assert found.meaning
    assert found.change is not None
    assert found.conclusion == "restart on localhost: spec changed"


def test_what_the_vmm_says_stands_beside_what_was_recorded() -> None:
    specs = specs_of()
    drift = (Drift(path="machine.vcpu_count", recorded=1, actual=4),)
    found = told("web-000", specs, as_wanted(specs, drift=drift))
    (field,) = [field for field in found.fields if field.path == "machine.vcpu_count"]
    assert (field.recorded, field.actual) == (1, 4)
    assert (found.rule, found.conclusion) == (
        "drift", "restart on localhost: drift: machine.vcpu_count is 4, recorded 1",
    )  # fmt: skip


def test_why_nothing_happens_to_a_vm_that_is_as_wanted() -> None:
    specs = specs_of()
    found = told("web-001", specs, as_wanted(specs))
    assert (found.rule, found.change) == ("up-to-date", None)
    assert found.conclusion == "nothing happens: it is as the specs want it"
    stopped = specs_of(state=", state: stopped")
    assert told("web-001", stopped, as_wanted(stopped)).rule == "stopped"
    absent = told("web-001", specs_of(state=", state: absent"), ())
    assert (absent.rule, absent.observed) == ("absent", ())


def test_a_vm_that_its_policy_leaves_down_says_so() -> None:
    specs = specs_of(state=", restart: {policy: never}")
    found = told("web-000", specs, as_wanted(specs, phase="exited", pid=None))
    assert found.rule == "not-restarted"
    assert found.conclusion == "nothing happens: its restart policy leaves it as it ended"


def test_a_vm_that_is_held_back_names_what_for_and_why() -> None:
    specs = specs_of()
    rows = tuple(
        observed(row.name, project="demo", spec=row.spec, spec_digest="1:other", policy=Policy(prune_max=1))
        for row in as_wanted(specs)
    )
    found = told("web-001", specs_of(WEB.replace("mem: 32", "mem: 48")), rows)
    assert found.conclusion.startswith("restart is held back: spec changed; at most 1 of 2")
    gone = told("web-000", specs_of(WEB.replace("replicas: 2", "replicas: 0")), as_wanted(specs))
    assert gone.wanted is None
    assert gone.rule == "not-in-specs"
    assert gone.conclusion.startswith("delete is held back: not in the specs;")
    assert "[prune]" in gone.refusals[0]
    assert {field.wanted for field in gone.fields} == {None}


def test_a_dark_host_is_the_reason() -> None:
    specs = specs_of()
    found = told("web-000", specs, as_wanted(specs), error="gave no answer")
    assert (found.rule, found.observed) == ("unreachable-host", ())
    assert found.conclusion == "nothing is done: its host localhost could not be read: gave no answer"


@pytest.mark.parametrize(
    ("whole", "row", "conclusion"),
    [
        (True, {"project": "other"}, "nothing happens: it belongs to project other, and these specs speak for demo"),
        (False, {"project": "default", "fleet": "old"}, "nothing happens: its fleet old is not in these specs"),
        (True, {"project": "demo", "fleet": "old"}, "delete is held back: not in the specs"),
    ],
)
def test_a_vm_that_is_only_observed(whole: bool, row: dict[str, str], conclusion: str) -> None:  # noqa: FBT001
    found = told("old-000", specs_of(whole=whole), (observed("old-000", **row),))
    assert found.wanted is None
    assert found.place == ""
    assert found.conclusion.startswith(conclusion)


def test_a_name_that_another_project_has_is_wanted_and_blocked() -> None:
    found = told("web-000", specs_of(), (observed("web-000", project="other"),))
    assert found.wanted is not None
    assert (found.rule, found.observed[0].project) == ("name-conflict", "other")
    assert {field.recorded for field in found.fields} == {None}


def test_what_changes_between_the_plan_and_the_look_is_worth_a_second_look() -> None:
    specs = specs_of()
    report = HostReport(
        host="localhost", observed_at=NOW, capacity=Capacity(vcpu_count=1, mem_size_mib=1024), vms=as_wanted(specs)
    )
    put = prepare(specs, Placements(), here="localhost")
    state = ObservedState(taken_at=NOW, hosts=(HostView(host="localhost", report=report),))
    plan = make_plan(put, state, RunOverrides()).plan
    gone = explain("web-000", specs, plan, [], here="localhost")
    late = msgspec.structs.replace(report, vms=(observed("web-009", project="demo"),))
    come = explain("web-009", specs, plan, [HostView(host="localhost", report=late)], here="localhost")
    for found in (gone, come):
        assert found is not None
        assert found.conclusion == "nothing happens: it changed while this was looked at; ask again"


def test_what_nobody_knows_has_no_story() -> None:
    assert story("web-009", specs_of(), ()) is None

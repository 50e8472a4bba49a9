"""Parts of a plan that come from the words of a command: limits, dead and missing hosts, destroy; and its peaks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.observed import (
    Capacity,
    HostReport,
    HostView,
    ObservedState,
    ObservedVM,
    Placements,
)
from mikrom_reconcile.core.model.plan import Peak, RunOverrides
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.core.planning.context import LEFT_OUT, PlanResult
from mikrom_reconcile.core.planning.planner import make_plan, prepare, requery_all
from mikrom_reconcile.core.planning.selection import refuse_unread
from mikrom_reconcile.core.specs.load import Specs
from tests.samples import NOW

INVENTORY = """
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: lab}
spec:
  hosts: {hv01: {}, hv02: {}, hv03: {}}
  groups: {kvm: {hosts: [hv01, hv02]}, spare: {hosts: [hv03]}}
"""
PROJECT = "\n---\napiVersion: mikrom/v1\nkind: Project\nmetadata: {name: demo}\n"
HOSTS = ("hv01", "hv02", "hv03")
ORDINARY = RunOverrides()


def fleet(name: str, replicas: int, hosts: str = "kvm", mem: int = 16, tags: str = "") -> str:
    return (
        f"\n---\napiVersion: mikrom/v1\nkind: Fleet\nmetadata: {{name: {name}, tags: [{tags}]}}\nspec:\n"
        f"  hosts: {hosts}\n  replicas: {replicas}\n  template: {{image: hello, machine: {{mem_size_mib: {mem}}}}}\n"
    )


def specs_of(*texts: str) -> Specs:
    files = (SourceFile(path="specs/all.yml", text="".join((INVENTORY, PROJECT, *texts))),)
    return validate_specs(SourceTree(revision="r", files=files), wiring.schemas(), here="localhost")


def rows(specs: Specs, **where: str) -> tuple[ObservedVM, ...]:
    """Every VM of the specs, as it is wanted, on the host that `where` gives its name, else where it belongs."""
    return tuple(
        ObservedVM(
            name=vm.name, uid=f"u-{vm.name}", project="demo", fleet=vm.fleet,
            host=where.get(vm.name.replace("-", "_"), vm.host), phase="running", state=vm.state, spec=vm.spec,
            policy=vm.policy, spec_digest=vm.spec_digest, generation=1, token=1, created_at=NOW,
        )
        for vm in render_all(specs, here="localhost")
    )  # fmt: skip


def decided(
    specs: Specs, seen: tuple[ObservedVM, ...], overrides: RunOverrides = ORDINARY, *, dark: str = "", **asked: Any
) -> PlanResult:
    placements = Placements(vms={row.name: row.host for row in seen}, covers=HOSTS)
    error = asked.pop("error", "gave no answer")
    note = asked.pop("note", "")
    views = tuple(
        HostView(host=host, error=error)
        if host == dark
        else HostView(host=host, report=report(host, tuple(row for row in seen if row.host == host), note))
        for host in HOSTS
    )
    put = prepare(specs, placements, here="localhost", **asked)
    return make_plan(put, ObservedState(taken_at=NOW, hosts=views), overrides)


def report(host: str, vms: tuple[ObservedVM, ...], note: str = "") -> HostReport:
    capacity = Capacity(vcpu_count=8, mem_size_mib=8192)
    return HostReport(host=host, observed_at=NOW, capacity=capacity, note=note, vms=vms)


def kinds(decision: PlanResult) -> dict[str, str]:
    return {change.name: f"{change.kind} on {change.host}" for change in decision.plan.changes}


# ---- --limit -----------------------------------------------------------------------------------------------------

TWO = (fleet("web", 2, tags="front"), fleet("db", 1, hosts="spare", tags="back"))


@pytest.mark.parametrize(
    ("limit", "names"),
    [
        ("web", {"web-000", "web-001"}),
        ("web-001", {"web-001"}),
        ("hv03", {"db-000"}),
        ("spare", {"db-000"}),
        ("kvm:!web-000", {"web-001"}),
        ("web-*", {"web-000", "web-001"}),
        ("all:&hv01", {"web-000"}),
    ],
)
def test_a_limit_names_vms_fleets_hosts_or_groups(limit: str, names: set[str]) -> None:
    decision = decided(specs_of(*TWO), (), RunOverrides(limit=limit))
    assert set(kinds(decision)) == names
    assert decision.unmatched == ""
    assert decision.plan.warnings == (f"{3 - len(names)} more changes are outside --limit, --tags or --skip-tags",)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (RunOverrides(limit="wbe"), "'wbe' matches no VM, host, group or fleet; did you mean web?"),
        (RunOverrides(limit="web-9"), "'web-9' matches no VM"),
        (RunOverrides(limit="hv0[4:9]"), "'hv0[4:9]' matches no VM"),
        (RunOverrides(limit="web:nothing*"), "'nothing*' matches no VM"),
        (RunOverrides(limit="web:!~db-[0-9]{4,5}"), "'~db-[0-9]{4,5}' matches no VM"),
        (RunOverrides(limit="~web-(0"), "'~web-(0' is not a regular expression"),
        (RunOverrides(limit=""), "an empty word selects nothing"),
        (RunOverrides(limit="web: "), "an empty word selects nothing"),
        (RunOverrides(limit="~"), "an empty word selects nothing"),
        (RunOverrides(limit="web:!"), "an empty word selects nothing"),
        (RunOverrides(limit="web:&db"), "'web:&db' leaves no VM"),
        (RunOverrides(limit="!all"), "'!all' leaves no VM"),
        (RunOverrides(tags=("front", "bakc")), "--tags: no fleet has the tag 'bakc'; did you mean back?"),
        (RunOverrides(skip_tags=("x",)), "--skip-tags: no fleet has the tag 'x'; known are back, front"),
        (RunOverrides(tags=("front",), skip_tags=("front",)), "--tags and --skip-tags leave no fleet"),
        (RunOverrides(skip_tags=("front", "back")), "--tags and --skip-tags leave no fleet"),
        (RunOverrides(tags=("front",), limit="db"), "--limit, --tags and --skip-tags together leave no VM"),
    ],
)
@pytest.mark.parametrize("destroy", [False, True])
def test_a_selection_that_matches_nothing_selects_nothing_and_says_why(
    overrides: RunOverrides, told: str, *, destroy: bool
) -> None:
    decision = decided(specs_of(*TWO), (), overrides, destroy=destroy)
    assert (decision.plan.changes, decision.plan.actions) == ((), ())
    assert told in decision.unmatched


def test_a_regular_expression_may_hold_what_joins_terms() -> None:
    specs = specs_of(*TWO)
    for limit in ("~web-0[0-9]{2,3}", r"~web-(?:000|001),!web-000:web-000", "~[wxyz,:]eb.*", r"~web\:|web-00."):
        assert set(kinds(decided(specs, (), RunOverrides(limit=limit)))) <= {"web-000", "web-001"}
    assert set(kinds(decided(specs, (), RunOverrides(limit="~web-0[0-9]{2,3}")))) == {"web-000", "web-001"}


def test_a_name_that_stands_for_different_vms_is_no_selection() -> None:
    specs = specs_of(fleet("web", 2, hosts="kvm"), fleet("kvm", 1, hosts="spare"), fleet("spare", 0))
    assert decided(specs, (), RunOverrides(limit="kvm")).unmatched == (
        "--limit: 'kvm' is a fleet and a group of different VMs; name the VMs"
    )
    assert set(kinds(decided(specs, (), RunOverrides(limit="kvm-*")))) == {"kvm-000"}


def test_a_variable_that_nothing_looks_up_is_refused_and_one_that_another_reads_is_not() -> None:
    def with_variables(**extra_vars: Any) -> Specs:
        lookups = (
            "\n---\napiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 1, vars: {b: '${c.d}'},"
        )
        files = (
            SourceFile(
                path="specs/all.yml", text=INVENTORY + lookups + " template: {image: hello, boot_args: 'x=${a}'}}"
            ),
        )
        return validate_specs(
            SourceTree(revision="r", files=files), wiring.schemas(), here="localhost", extra_vars=extra_vars
        )

    refuse_unread(with_variables())
    refuse_unread(with_variables(a="${e}", c={"d": 1}, e=2))
    with pytest.raises(UsageError, match="-e: nothing in these specs looks 'b' up; known are a, c"):
        refuse_unread(with_variables(a=1, b=2))
    with pytest.raises(UsageError, match="-e: nothing in these specs looks 'aa' up; did you mean a"):
        refuse_unread(with_variables(aa=1))
    with pytest.raises(UsageError, match=r"-e: nothing in these specs looks 'a' up$"):
        refuse_unread(msgspec.structs.replace(specs_of(*TWO), extra_vars={"a": 1}))


def test_what_was_destroyed_before_may_be_named_again() -> None:
    specs = specs_of(*TWO)
    decision = decided(specs, (), RunOverrides(limit="web-000"), destroy=True)
    assert (decision.unmatched, decision.plan.changes, decision.plan.selected) == ("", (), 1)


def test_a_vm_on_a_host_that_does_not_answer_may_be_named_though_no_spec_wants_it() -> None:
    gone = rows(specs_of(fleet("old", 1)))
    decision = decided(specs_of(*TWO), gone, RunOverrides(limit="old-000"), dark=gone[0].host)
    assert (decision.unmatched, decision.plan.changes) == ("", ())


def test_a_limit_that_names_what_needs_nothing_is_no_mistake() -> None:
    specs = specs_of(*TWO)
    for limit in ("web-000", "hv02", "db", "kvm", "hv0*"):
        decision = decided(specs, rows(specs), RunOverrides(limit=limit))
        assert (decision.unmatched, decision.plan.changes) == ("", ())
    empty = decided(specs_of(fleet("web", 1)), (), RunOverrides(limit="spar*"))
    assert (empty.unmatched, empty.plan.changes, empty.plan.selected) == ("", (), 0)


def test_tags_select_fleets_and_a_vanished_fleet_has_none() -> None:
    specs, gone = specs_of(*TWO), rows(specs_of(fleet("old", 1)))
    assert set(kinds(decided(specs, gone, RunOverrides(tags=("front",))))) == {"web-000", "web-001"}
    assert set(kinds(decided(specs, gone, RunOverrides(skip_tags=("front",))))) == {"db-000"}
    assert set(kinds(decided(specs, gone, RunOverrides(limit="old")))) == {"old-000"}


# ---- hosts that are dead, or thought away ------------------------------------------------------------------------


def test_vms_of_a_host_that_is_assumed_dead_are_made_elsewhere() -> None:
    specs = specs_of(fleet("web", 3))
    seen = rows(specs)  # web-000 and web-002 on hv01
    assert kinds(decided(specs, seen, dark="hv01")) == {"web-000": "blocked on hv01", "web-002": "blocked on hv01"}
    decision = decided(specs, seen, dark="hv01", dead=("hv01",))
    assert kinds(decision) == {"web-000": "create on hv02", "web-002": "create on hv02"}
    assert decision.plan.unreachable == {"hv01": "gave no answer"}
    assert decision.placements.vms == {"web-000": "hv02", "web-001": "hv02", "web-002": "hv02"}


def test_a_host_that_answers_is_not_dead_whatever_anybody_says() -> None:
    specs = specs_of(fleet("web", 3))
    assert kinds(decided(specs, rows(specs), dead=("hv01",))) == {}


def test_a_vm_that_may_only_be_on_the_dead_host_stays_blocked() -> None:
    specs = specs_of(fleet("web", 1, hosts="hv01"))
    assert kinds(decided(specs, rows(specs), dark="hv01", dead=("hv01",))) == {"web-000": "blocked on hv01"}


def test_another_dark_host_hides_what_it_may_have() -> None:
    specs = specs_of(fleet("web", 2))
    seen = rows(specs)
    placements = Placements(vms={row.name: row.host for row in seen}, covers=())
    views = (
        HostView(host="hv01", error="off"), HostView(host="hv02", report=report("hv02", seen[1:])),
        HostView(host="hv03", error="off"),
    )  # fmt: skip
    put = prepare(specs, placements, here="localhost", dead=("hv01",))
    (change,) = make_plan(put, ObservedState(taken_at=NOW, hosts=views), RunOverrides()).plan.changes
    assert change.rule == "possible-duplicate"
    assert "hv03" in change.reasons[0]
    assert "hv01" not in change.reasons[0]


def test_a_host_that_is_thought_away_is_no_unreachable_one() -> None:
    specs = specs_of(fleet("web", 2), fleet("db", 1, hosts="hv01"))
    decision = decided(specs, rows(specs), dark="hv01", error=LEFT_OUT, dead=("hv01",))
    assert kinds(decision) == {"db-000": "blocked on hv01", "web-001": "create on hv02"}
    assert decision.plan.unreachable == {}


# ---- reasons -----------------------------------------------------------------------------------------------------


def test_a_destroy_says_that_it_was_asked_for() -> None:
    specs = specs_of(fleet("web", 1))
    (change,) = decided(specs, rows(specs), destroy=True).plan.changes
    assert (change.kind, change.rule, change.reasons) == ("delete", "destroy", ("destroy was asked for",))


def test_new_vms_go_to_the_hosts_with_the_fewest_and_a_moved_one_too() -> None:
    specs = specs_of(fleet("web", 2))
    assert [change.host for change in decided(specs, ()).plan.changes] == ["hv01", "hv02"]
    alone = specs_of(fleet("web", 1))
    (moved,) = decided(alone, rows(alone, web_000="hv03")).plan.changes
    assert (moved.kind, moved.desired and moved.desired.host) == ("move", "hv01")


def test_the_peak_is_what_is_taken_down_at_once_and_never_more_than_the_share() -> None:
    before, after = specs_of(fleet("web", 20)), specs_of(fleet("web", 20, mem=32), fleet("db", 2))
    assert decided(after, rows(before)).plan.peaks == {"web": Peak(down=2, size=20, pending=20)}
    missing = decided(after, rows(before)[3:])
    assert missing.plan.peaks == {"web": Peak(down=2, size=20, pending=17)}
    assert decided(before, ()).plan.peaks == {}
    assert decided(specs_of(fleet("web", 1, mem=32)), rows(specs_of(fleet("web", 1)))).plan.peaks == {
        "web": Peak(down=1, size=1, pending=1)
    }


# ---- what should be known of a host --------------------------------------------------------------------------------


def test_a_note_of_a_host_is_told_where_something_is_done_and_only_there() -> None:
    planned = decided(specs_of(fleet("db", 1, hosts="spare")), (), note="QEMU runs its VMs").plan
    assert planned.warnings == ("hv03: QEMU runs its VMs",)
    assert decided(specs_of(), (), note="QEMU runs its VMs").plan.warnings == ()


def test_a_host_outside_the_inventory_is_asked_for_our_vms_and_not_who_else_has_a_name() -> None:
    asked = prepare(specs_of(fleet("web", 1)), Placements(), here="localhost", living=("hv99",))
    assert [host for host, query in asked.queries.items() if not query.others] == ["hv99"]
    assert requery_all(asked).queries["hv99"] == msgspec.structs.replace(asked.queries["hv99"], before=True)


def test_who_else_has_a_name_is_asked_only_where_a_vm_is_to_be_made() -> None:
    known = Placements(vms={"web-000": "hv01"}, covers=HOSTS)
    for placements, is_asked in ((known, False), (Placements(), True)):
        asked = prepare(specs_of(fleet("web", 1)), placements, here="localhost").queries
        assert {query.others for query in asked.values()} == {is_asked}


def test_actions_tell_hosts_what_the_inventory_allows_and_nothing_else() -> None:
    sized = INVENTORY.replace("hv01: {}", "hv01: {overcommit: {mem_size_mib: 2.0}}")
    files = (SourceFile(path="specs/all.yml", text=sized + PROJECT + fleet("web", 2)),)
    specs = validate_specs(SourceTree(revision="r", files=files), wiring.schemas(), here="localhost")
    asked = prepare(specs, Placements(), here="localhost")
    reports = (
        HostReport(host=host, observed_at=NOW, capacity=Capacity(vcpu_count=1, mem_size_mib=100)) for host in HOSTS
    )
    views = tuple(HostView(host=report.host, report=report) for report in reports)
    plan = make_plan(asked, ObservedState(taken_at=NOW, hosts=views), RunOverrides()).plan
    assert {action.host: action.mem_limit_mib for action in plan.actions} == {"hv01": 200, "hv02": None}

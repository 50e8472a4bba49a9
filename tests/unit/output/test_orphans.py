from __future__ import annotations

from mikrom_reconcile.core.model.observed import Capacity, HostReport, HostView, Stray
from mikrom_reconcile.output.tables import orphans_in, orphans_text
from mikrom_reconcile.output.text import PLAIN
from tests.samples import NOW, observed

REPORT = HostReport(
    host="hv01",
    observed_at=NOW,
    capacity=Capacity(vcpu_count=2, mem_size_mib=1024),
    vms=(
        observed("web-000"),
        observed("web-008", unmanaged=True),
        observed("web-009"),
        observed("cms-000", project="blog"),
        observed("torn", project="", phase="unreadable"),
    ),
    strays=(Stray(vm="db-000", pid=12),),
    foreign=(Stray(vm="", pid=13),),
)
VIEWS = (HostView(host="hv01", report=REPORT), HostView(host="hv02", error="dark"))


def test_every_kind_is_told_with_what_to_do_next() -> None:
    found = orphans_in(VIEWS, "demo", frozenset({"web-000"}))
    assert [(orphan.kind, orphan.vm, orphan.pid) for orphan in found] == [
        ("no record", "db-000", 12), ("let go", "web-008", 4711), ("no spec", "web-009", 4711),
        ("other project", "cms-000", 4711), ("foreign", "", 13),
    ]  # fmt: skip
    told = orphans_text(found, PLAIN)
    for word in ("restore its record", "`import` takes it over", "mikrom delete", "cannot be used", "left alone"):
        assert word in told


def test_the_older_of_two_is_a_double_with_specs_and_without() -> None:
    copies = [
        HostView(host=host, report=HostReport(host=host, observed_at=NOW, capacity=REPORT.capacity, vms=(vm,)))
        for host, token in (("hv01", 2), ("hv02", 3))
        for vm in (observed("web-000", host=host, token=token),)
    ]
    for project, wanted in (("demo", frozenset({"web-000"})), (None, frozenset[str]())):
        found = orphans_in(copies, project, wanted)
        assert [(orphan.kind, orphan.vm, orphan.host) for orphan in found] == [("double", "web-000", "hv01")]


def test_without_specs_only_processes_are_judged() -> None:
    assert [orphan.kind for orphan in orphans_in(VIEWS, None, frozenset())] == ["no record", "foreign"]
    assert orphans_text([], PLAIN) == "No orphans.\n"

"""What the reports of many hosts come to."""

from __future__ import annotations

from mikrom_reconcile.core.model.observed import Capacity, HostReport, HostView, ObservedState
from mikrom_reconcile.core.planning.context import merge_reports
from tests.samples import NOW, observed


def view(host: str, *names: str, tokens: dict[str, int] | None = None) -> HostView:
    rows = tuple(observed(name, host=host, project="bank") for name in names)
    capacity = Capacity(vcpu_count=1, mem_size_mib=1024)
    report = HostReport(host=host, observed_at=NOW, capacity=capacity, highest_tokens=tokens or {}, vms=rows)
    return HostView(host=host, report=report)


def test_the_highest_token_of_the_project_on_any_host_counts() -> None:
    views = (view("hv1", tokens={"shop": 3, "bank": 9}), view("hv2", tokens={"shop": 5}), view("hv3"))
    dark = HostView(host="hv4", error="no answer")
    assert merge_reports(ObservedState(taken_at=NOW, hosts=(*views, dark)), "shop", {}).highest_token == 5
    assert merge_reports(ObservedState(taken_at=NOW, hosts=(view("hv3"), dark)), "shop", {}).highest_token == 0
    assert merge_reports(ObservedState(taken_at=NOW, hosts=()), "shop", {}).highest_token == 0


def test_of_two_strangers_of_one_name_the_one_on_the_first_host_is_told() -> None:
    for hosts in ((view("hv1", "web-000"), view("hv2", "web-000")), (view("hv2", "web-000"), view("hv1", "web-000"))):
        assert merge_reports(ObservedState(taken_at=NOW, hosts=hosts), "shop", {}).others["web-000"].host == "hv1"


def test_what_cannot_be_read_is_ours_by_no_word_of_its_own() -> None:
    row = observed("web-000", host="hv1", project="shop", phase="unreadable")
    report = HostReport(host="hv1", observed_at=NOW, capacity=Capacity(vcpu_count=1, mem_size_mib=1024), vms=(row,))
    view = merge_reports(ObservedState(taken_at=NOW, hosts=(HostView(host="hv1", report=report),)), "shop", {})
    assert (dict(view.own), dict(view.others)) == ({}, {"web-000": row})

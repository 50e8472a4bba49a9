"""The page of the status: what is amiss is told in full with why and what comes next, and nothing in it is obeyed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.observed import Attempt, Capacity, Drift, HostReport, HostView
from mikrom_reconcile.core.model.plan import UnfinishedRun
from mikrom_reconcile.core.specs.inventory import Host, Inventory
from mikrom_reconcile.output.pages import Snapshot, status_html, why
from mikrom_reconcile.output.tables import fleets_in
from tests.samples import MEMORY, NOW, change, observed, outcome, plan, record, refusal
from tests.unit.output.test_plan_forms import EVIL, Page, evil_plan


def source_state(**fields: Any) -> SourceState:
    known = {"number": 1, "digest": "1:d", "since": NOW, "good_at": NOW, "revision": "4f1c", "looked_at": NOW}
    return SourceState(**{**known, **fields})


DOWN = observed(
    "web-003", host="hv01", phase="crashed", last_error="the guest panicked", health="http on 80: refused",
    attempt=Attempt(spec_digest="1:d", count=2, error="the guest panicked"), restarts=(NOW,),
    drift=(Drift(path="machine.mem_size_mib", recorded=16, actual=32),), addresses={"eth0": "10.0.0.7"},
)  # fmt: skip
REPORT = HostReport(
    host="hv01", observed_at=NOW, capacity=Capacity(vcpu_count=2, mem_size_mib=1000), used_mib=300,
    promised=Capacity(vcpu_count=2, mem_size_mib=950), vms=(observed("web-001", host="hv01"), DOWN),
)  # fmt: skip
VIEWS = (HostView(host="hv01", report=REPORT), HostView(host="hv02", error="gave no answer"))
SNAPSHOT = Snapshot(
    taken_at=NOW,
    views=VIEWS,
    fleets=fleets_in(VIEWS, {("demo", "web"): (3, "halted")}),
    inventory=Inventory(hosts={"hv01": Host(reserve={"mem_size_mib": 100})}),
    plan=plan(
        change("web-003", "restart", "the guest crashed", host="hv01", fields=(MEMORY,)),
        refusals=(refusal("db", "1 of 1 VMs would go"),),
        unreachable={"hv02": "gave no answer"},
    ),
    runs=(record("7f3c", outcome("web-003", verb="restart", fields=(MEMORY,)), conclusion="Converged."),),
    unfinished=(UnfinishedRun(run_id="8a", origin="apply by ana@b7", since=NOW, state="running", planned=4, done=1),),
    source=source_state(name="/specs", revision="4f1c", looked_at=NOW, problem="web.yml:1:1: no"),
    consoles={"web-003": b"Kernel \x1b[31mpanic\x1b[0m\n<b>"},
)


def evil() -> Snapshot:
    row = observed(EVIL, project=EVIL, fleet=EVIL, host=EVIL, phase="failed", last_error=EVIL, addresses={"e": EVIL})
    report = replace(REPORT, host=EVIL, vms=(row,))
    run = record(EVIL, outcome(EVIL, "failed_permanent", error=EVIL), conclusion=EVIL, origin=EVIL, revision=EVIL)
    views = (HostView(host=EVIL, report=report), HostView(host=EVIL, error=EVIL))
    return replace(
        SNAPSHOT, views=views, fleets=fleets_in(views, {}), plan=evil_plan(), runs=(run,),
        unfinished=(UnfinishedRun(run_id=EVIL, origin=EVIL, since=NOW, state="failed", error=EVIL),),
        source=source_state(name=EVIL, revision=EVIL, looked_at=NOW, problem=EVIL), consoles={EVIL: EVIL.encode()},
    )  # fmt: skip


def test_the_page_tells_what_is_amiss_why_and_what_comes_next() -> None:
    text = Page(status_html(SNAPSHOT)).text
    for told in (
        "2 hosts, 2 VMs, 1 running, 1 amiss.", "hv02: gave no answer", "fleet db: 1 of 1 VMs would go [prune]",
        "machine.mem_size_mib is 32, was ordered 16", "restart: the guest crashed", "1 of 4 done", "Converged.",
        "web.yml:1:1: no",
        "Kernel panic\n<b>", "2 VMs", "10.0.0.7", "halted", "machine.mem_size_mib: 16 → 32",
    ):  # fmt: skip
        assert told in text, told
    assert text.count("hv02: gave no answer") == 1


def test_a_host_is_shown_with_what_is_promised_reserved_and_used() -> None:
    html = status_html(SNAPSHOT)
    assert '<span class="red">950 MiB</span></td><td>900 MiB</td><td>100 MiB</td><td>300 MiB</td>' in html
    unlimited = replace(
        SNAPSHOT, inventory=Inventory(), views=(HostView(host="a", report=replace(REPORT, overhead_mib=None)),)
    )
    assert "<td>950 MiB</td><td>-</td><td>0 MiB</td><td>300 MiB</td>" in status_html(unlimited)
    quiet = replace(REPORT, used_mib=None)
    assert "<td>0 MiB</td><td>-</td>" in status_html(replace(unlimited, views=(HostView(host="a", report=quiet),)))


def test_each_reason_is_said_once() -> None:
    assert why(DOWN).count("the guest panicked") == 1
    assert why(observed("a")) == ""


def test_nothing_in_the_page_is_obeyed_and_everything_in_it_is_closed() -> None:
    html = status_html(evil(), "<p>as given</p>")
    page = Page(html)
    assert page.open == []
    assert page.text.count("<script>alert(1)</script>") > 10
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "base", "form", "style1"})
    assert {given["href"] for tag, given in page.tags if tag == "a"} == {
        f"#{part}" for part in ("amiss", "hosts", "fleets", "next", "runs", "vms")
    }
    assert not {name for _, given in page.tags for name in given} & {"src", "onclick", "style"}
    assert not set(page.text) & {"\x1b", "\u202e"}
    assert "<p>as given</p>" in html


def test_every_table_has_a_caption_and_every_cell_its_heads() -> None:
    page = Page(status_html(SNAPSHOT))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") == 4
    assert all(given.get("scope") in {"row", "col"} for tag, given in page.tags if tag == "th")
    assert tags.count("tr") == 4 + len([1 for tag, given in page.tags if given.get("scope") == "row"])
    assert [tag for tag in tags if tag in {"h1", "h2", "h3"}][:2] == ["h1", "h2"]


@pytest.mark.parametrize("problem", ["No specs.", ""])
def test_an_empty_fleet_has_a_page(problem: str) -> None:
    text = Page(status_html(Snapshot(taken_at=NOW, views=(), problem=problem))).text
    assert "0 hosts, 0 VMs, 0 running, 0 amiss." in text
    assert "Every VM is as it was ordered." in text
    assert problem in text


def test_of_very_much_the_page_shows_the_beginning_and_says_so() -> None:
    rows = tuple(observed(f"web-{number:04d}", phase="killed") for number in range(1000))
    run = record("7f3c", *(outcome(vm.name) for vm in rows[:-1]), outcome("last", "failed_permanent", error="no"))
    crowd = replace(SNAPSHOT, views=(HostView(host="hv01", report=replace(REPORT, vms=rows)),), runs=(run,))
    text = Page(status_html(crowd)).text
    assert "… and 900 more; mikrom get vms --amiss has all" in text
    assert "… and 980 actions more: mikrom history 7f3c" in text
    assert "failed: create last on localhost: no" in text


def test_scheduled_runs_that_do_not_come_are_told_in_red() -> None:
    late = source_state(name="/specs", revision="4f1c", looked_at=NOW, next_at=NOW - timedelta(hours=1))
    assert "none has come since one was due 1h ago" in Page(status_html(replace(SNAPSHOT, source=late))).text
    well = replace(late, next_at=NOW)
    assert '<p class="red">' not in status_html(replace(SNAPSHOT, source=well))
    assert '<p class="red">' in status_html(SNAPSHOT)

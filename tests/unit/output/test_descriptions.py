"""What a name stands for: VMs by name and by address, hosts and fleets, each with what was done to it last."""

from __future__ import annotations

from mikrom_reconcile.core.model.observed import Capacity, HostReport, HostView
from mikrom_reconcile.output.tables import description_document, fleets_in
from tests.samples import MEMORY, NOW, observed, outcome, record

CAPACITY = Capacity(vcpu_count=2, mem_size_mib=4096)
ROWS = (observed("web-000", addresses={"eth0": "10.0.0.4"}), observed("web-001", addresses={"eth0": "10.0.0.5"}))
VIEWS = [HostView(host="localhost", report=HostReport(host="localhost", observed_at=NOW, capacity=CAPACITY, vms=ROWS))]
FLEETS = fleets_in(VIEWS, {})
DEED = outcome("web-001", verb="restart", fleet="web", reasons=("spec changed",), fields=(MEMORY,))
RUN = record("7f3c", DEED, revision="4f1c", author="Ana <ana@x>")


def test_a_vm_is_found_by_its_name_and_by_its_address_with_what_was_done_to_it() -> None:
    for name in ("web-001", "10.0.0.5"):
        (vm,) = description_document(name, VIEWS, FLEETS, [RUN])["found"]
        assert (vm["kind"], vm["name"]) == ("VM", "web-001")
        (event,) = vm["events"]
        assert (event["origin"], event["revision"], event["author"]) == ("apply by ana@build7", "4f1c", "Ana <ana@x>")
        assert (event["reasons"], event["fields"]) == (("spec changed",), (MEMORY,))
    (other,) = description_document("10.0.0.4", VIEWS, FLEETS, [RUN])["found"]
    assert (other["name"], other["events"]) == ("web-000", [])


def test_a_host_and_a_fleet_have_what_was_done_in_them() -> None:
    for name in ("localhost", "web"):
        (found,) = description_document(name, VIEWS, FLEETS, [RUN])["found"]
        assert [event["vm"] for event in found["events"]] == ["web-001"]
    assert description_document("nobody", VIEWS, FLEETS, [RUN])["found"] == []

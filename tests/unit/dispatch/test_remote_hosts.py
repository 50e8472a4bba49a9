"""What control believes of a host's answers: what the host says about itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mikrom_reconcile.core.model.observed import Capacity, HostReport
from mikrom_reconcile.dispatch.hosts.remote import _outcome, _view
from mikrom_reconcile.dispatch.transport.order_envelope import given_up
from mikrom_reconcile.dispatch.transport.rpc import Answer, pack
from tests.fakes import order
from tests.samples import observed

NOW = datetime.now(UTC)


def test_an_outcome_is_believed_from_the_host_that_it_is_about() -> None:
    outcome = given_up(order("stop", "web-1", host="hv01"), "skipped", "a test")
    assert _outcome(Answer("host:hv01", "outcome", pack(outcome))) == outcome
    assert _outcome(Answer("host:hv02", "outcome", pack(outcome))) is None


@pytest.mark.parametrize(("host", "of_row"), [("hv02", "hv01"), ("hv01", "hv02")])
def test_a_report_about_another_host_is_no_report(host: str, of_row: str) -> None:
    capacity = Capacity(vcpu_count=1, mem_size_mib=1024)
    report = HostReport(host=host, observed_at=NOW, capacity=capacity, vms=(observed("web-1", host=of_row),))
    view = _view("hv01", Answer("host:hv01", "report", pack(report)))
    assert view.report is None
    assert view.error == "host hv01 spoke for hv02, and is not believed: see to it, it may be broken into"

"""A host over a driver that fails as told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import ActionOutcome, Order
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from tests.fakes import HOST, FakeDriver, HeldClock, order

VM = "web-000"
TEMPORARY = TemporaryError("no memory", vm=VM, step="booting")
PERMANENT = PermanentError("bad kernel", vm=VM, step="booting")


class Host:
    """A host agent, what it consists of, and the `steps` that its last order took."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir
        self.driver = FakeDriver()
        self.clock = HeldClock()
        self.records = Records(state_dir)
        self.steps: list[str] = []
        self.agent = HostAgent(
            HOST, driver=self.driver, records=self.records, clock=self.clock,
            on_step=lambda _vm, step: self.steps.append(step),
        )  # fmt: skip

    def execute(self, given: Order) -> ActionOutcome:
        self.steps.clear()
        self.driver.calls.clear()
        return self.agent.execute(given)

    def record(self) -> VMRecord:
        found = self.records.read(VM)
        assert isinstance(found, VMRecord)
        return found

    def created(self) -> ObservedVM:
        outcome = self.execute(order("create", VM))
        assert outcome.result == "done", outcome.error
        assert outcome.observed is not None
        return outcome.observed


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def error(outcome: ActionOutcome) -> str:
    assert outcome.error is not None
    return outcome.error

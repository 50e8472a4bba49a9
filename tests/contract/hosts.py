"""A whole host over a driver under test, and the next run in miniature: the real rules over the real observation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.observed import ObservedVM, ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, Verb, VMChange
from mikrom_reconcile.core.planning.context import actions_of
from mikrom_reconcile.core.planning.rules import DiffInput, judge
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.system.time_limits import Clock
from tests.contract.drivers import Bench, wait_until
from tests.fakes import HOST, order
from tests.guests import SLOWNESS

KEPT = ("locks", "tombstones", "tokens", "images", "attempts")
"""Folders of the state that outlive the last VM."""


def await_threads(prefix: str) -> None:
    """Return when this process has no thread left whose name begins so."""
    wait_until(lambda: not any(it.name.startswith(prefix) for it in threading.enumerate()), f"the end of {prefix}")


class Host:
    """A host agent over the driver of `bench`, and the `token` of the run that orders now."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench = bench
        self.state_dir = folder / "state"
        self.records = Records(self.state_dir)
        self.token = 1
        self.agent = self.another()

    def another(self, on_step: Callable[[str, str], None] = lambda _vm, _step: None) -> HostAgent:
        """The same host as another process would have it."""
        return HostAgent(
            HOST, driver=self.bench.another(), records=Records(self.state_dir), clock=Clock(), on_step=on_step
        )

    def seen(self, vm: str) -> ObservedVM | None:
        report = self.agent.observe(ObserveQuery())
        return next((row for row in report.vms if row.name == vm), None)

    def record(self, vm: str) -> VMRecord:
        found = self.records.read(vm)
        assert isinstance(found, VMRecord), found
        return found

    def created(self, vm: str, desired: DesiredVM | None = None) -> ObservedVM:
        outcome = self.agent.execute(order("create", vm, desired=desired, token=self.token))
        assert outcome.result == "done", outcome.error
        assert outcome.observed is not None
        if outcome.observed.phase == "running":  # the guest hears Ctrl-Alt-Del once it has said that it is up
            wait_until(lambda: b"MIKROM-UP" in self.agent.console(vm, max_bytes=1000).content, "the guest's first line")
        return outcome.observed

    def order(
        self, verb: Verb, vm: str, seen: ObservedVM | None = None, *, desired: DesiredVM | None = None,
        deadline_s: float = 20.0 * SLOWNESS, moved_from: str = "",
    ) -> Order:  # fmt: skip
        """An order of the run that orders now."""
        given = {"desired": desired, "deadline_s": deadline_s, "moved_from": moved_from}
        return order(verb, vm, seen, token=self.token, **given)  # type: ignore[arg-type]

    def next_order(self, vm: str, desired: DesiredVM | None) -> Order | None:
        """What a run orders for one VM after it has looked; None when all is as wanted."""
        seen = self.seen(vm)
        if seen is None and desired is None:
            return None
        change = judge(DiffInput(desired=desired, observed=seen))
        if not isinstance(change, VMChange):
            return None
        action = next(actions_of([change], "shop"), None)
        if action is None:
            return None  # it waits for something
        return Order(run_id=f"run-{self.token}", token=self.token, action=action)

    def converge(self, vm: str, desired: DesiredVM | None) -> list[ActionOutcome]:
        """The next runs until there is nothing to do, three at most."""
        outcomes: list[ActionOutcome] = []
        for _ in range(3):
            self.token += 1
            given = self.next_order(vm, desired)
            if given is None:
                return outcomes
            outcomes.append(self.agent.execute(given))
        raise AssertionError(f"still {self.next_order(vm, desired)} after {outcomes}")

    def close(self) -> None:
        """End its supervision, and await what that is at: of a VMM whose start is killed it would start another."""
        self.agent.stop_supervision()
        await_threads("supervise")

    def leftovers(self) -> list[str]:
        """Files and folders of VMs: none once the last one is deleted."""
        kept = tuple(self.state_dir / name for name in KEPT)
        folders = (self.state_dir, self.state_dir.parent / "run")
        found = [path for folder in folders for path in folder.glob("*/**/*")]
        return [str(path) for path in found if not any(path.is_relative_to(folder) for folder in kept)]

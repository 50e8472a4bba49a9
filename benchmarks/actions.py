"""What an action costs beyond its driver: CPU of the executor alone, and of a whole apply from specs to report.

The driver is the simulated one, so that the actions are many and the VMMs none; what is spent inside it is subtracted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

from benchmarks.rows import Goal, Row
from benchmarks.scratch import scratch
from mikrom_reconcile import wiring
from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.errors import PermanentError
from mikrom_reconcile.core.model.observed import VMMFacts
from mikrom_reconcile.core.model.plan import Order, RunRequest
from mikrom_reconcile.dispatch.hosts.local import LocalHosts
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.settings import load
from mikrom_reconcile.system.time_limits import Clock

ACTIONS = 1000
ROUNDS = 3
HOST = "localhost"
End = Literal["done", "failed", "refused"]
SPECS = f"""
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {ACTIONS}
  template: {{image: hello, machine: {{mem_size_mib: 4}}}}
"""


class MeteredDriver(SimulatedDriver):
    """Adds up the CPU seconds spent in it."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.end: End = "done"
        self.spent_s: list[float] = []

    def observe(self, record: VMRecord) -> VMMFacts:
        """As the driver's."""
        began_s = time.thread_time()
        facts = super().observe(record)
        self.spent_s.append(time.thread_time() - began_s)
        return facts

    def memory_mib(self, spec: VMSpec) -> int:
        """More than there is, where orders are to be refused."""
        return 1 << 30 if self.end == "refused" else super().memory_mib(spec)

    def start(self, record: VMRecord, *, deadline_s: float) -> str:
        """As the driver's, unless starts are to fail."""
        if self.end == "failed":
            raise PermanentError("the guest does not come up", vm=record.vm, step="booting it")
        began_s = time.thread_time()
        note = super().start(record, deadline_s=deadline_s)
        self.spent_s.append(time.thread_time() - began_s)
        return note


class Host:
    """One machine with an engine, all in this process."""

    def __init__(self, state_dir: Path) -> None:
        self.driver = MeteredDriver(state_dir)
        self.agent = HostAgent(HOST, driver=self.driver, records=Records(state_dir), clock=Clock())
        store = FileStore(state_dir / "store", state_dir / "locks")
        settings = load({"MIKROM_STATE_DIR": str(state_dir), "MIKROM_HOST": HOST})
        self.engine = wiring.make_reconciler(settings, LocalHosts(self.agent), store)


def measure() -> Iterator[Row]:
    """Creates, one after another in the executor, and as one apply with 32 at once."""
    told = logging.getLogger("mikrom_reconcile")  # as on a worker: of what is done each step is told, too
    told.addHandler(logging.NullHandler())
    told.setLevel(logging.INFO)
    each = f"({ACTIONS} creates)"
    acts: dict[str, Callable[[Host], float]] = {
        f"CPU of an action beyond its driver, executor {each}": _execute_all,
        "the same of creates that fail in the driver": partial(_execute_all, end="failed"),
        "the same of creates that are refused for lack of memory": partial(_execute_all, end="refused"),
        f"CPU of an action beyond its driver, apply {each}": _apply,
    }
    with scratch() as folder:  # one for all of them: nothing may be removed before the last has ended
        for row, (what, act) in enumerate(acts.items()):
            yield _row(what, [_one_round(act, folder / f"{row}-{number}") for number in range(ROUNDS)])


def _row(what: str, figures: list[tuple[float, float]]) -> Row:
    beyond, inside = (median(figure[side] for figure in figures) / ACTIONS * 1000 for side in (0, 1))
    goal = Goal(number=5, bound=1, unit="ms", at_most=True)
    return Row(what=what, ours=f"{beyond:.2f} ms", other=f"{inside:.2f} ms", goal=goal, figure=beyond)


def _one_round(act: Callable[[Host], float], folder: Path) -> tuple[float, float]:
    """CPU seconds beyond the driver, and in it."""
    host = Host(folder)
    spent_s = act(host)
    inside_s = sum(host.driver.spent_s)
    return spent_s - inside_s, inside_s


def _execute_all(host: Host, end: End = "done") -> float:
    orders = [Order(run_id="bench", token=1, action=action) for action in host.engine.plan(_request()).actions]
    assert len(orders) == ACTIONS
    host.driver.end = end
    began_s = time.process_time()
    results = {host.agent.execute(order).result for order in orders}
    spent_s = time.process_time() - began_s
    assert results == {"done" if end == "done" else "failed_permanent"}
    return spent_s


def _apply(host: Host) -> float:
    began_s = time.process_time()
    report = host.engine.apply(_request(), None, progress=lambda _: None)
    spent_s = time.process_time() - began_s
    assert report.remaining is not None
    assert report.remaining.changes == ()
    return spent_s


def _request() -> RunRequest:
    tree = SourceTree(revision="bench", files=(SourceFile(path="web.yml", text=SPECS),))
    return RunRequest(run_id="bench", origin="a benchmark", tree=tree, forks=32, timeout_s=600)

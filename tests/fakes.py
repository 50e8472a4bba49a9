"""Fakes of the host's ports that fail as a test says, and orders to give to a host.

What has to survive the end of a process, or is shared by processes, is tested on the drivers that are shipped.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Container
from datetime import UTC, datetime, timedelta

from mikrom_reconcile.core.model.desired import DesiredVM, Machine, Policy, State, VMSpec
from mikrom_reconcile.core.model.encoding import digest_of, spec_digest
from mikrom_reconcile.core.model.observed import Console, End, ObservedVM, Stray, VMMFacts
from mikrom_reconcile.core.model.plan import Action, Expect, Order, Verb
from mikrom_reconcile.host.drivers.simulated import drift_of
from mikrom_reconcile.host.ports import Driver, LinkDrift, VMRecord
from mikrom_reconcile.system.time_limits import Clock
from tests.guests import MEM_MIB, SLOWNESS

HOST = "hv1"
SPEC = VMSpec(image="hello", machine=Machine(vcpu_count=1, mem_size_mib=MEM_MIB), boot_args="quiet")
BIGGER = VMSpec(image="hello", machine=Machine(vcpu_count=1, mem_size_mib=2 * MEM_MIB), boot_args="quiet")


class HeldClock(Clock):
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.moved_s = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 22, 12, 0, tzinfo=UTC) + timedelta(seconds=self.moved_s)

    def monotonic(self) -> float:
        return self.moved_s


class FakeDriver(Driver):
    """A driver whose VMMs are entries of a dict.

    `faults` maps a method to what its next calls raise, before they do anything, or after it with "start, late".
    `calls` tells what was called, observing apart. `facts` replaces what is seen of a VM, `ends` says how its
    VMM ended, `boots_instead` is the spec that is booted.
    """

    name = "fake"
    suspends = False

    def __init__(self) -> None:
        self.vmms: dict[str, VMSpec] = {}
        self.facts: dict[str, VMMFacts] = {}
        self.ends: dict[str, End] = {}
        self.faults: dict[str, list[BaseException]] = defaultdict(list)
        self.calls: list[str] = []
        self.graces: list[float] = []
        self.refused: str | None = None
        self.boots_instead: VMSpec | None = None
        self._lock = threading.Lock()

    def memory_mib(self, spec: VMSpec) -> int:
        return spec.machine.mem_size_mib

    def unsupported(self, spec: VMSpec) -> str | None:
        return self.refused

    def observe(self, record: VMRecord) -> VMMFacts:
        self._fault("observe")
        if record.vm in self.facts:
            return self.facts[record.vm]
        spec = self.vmms.get(record.vm)
        if spec is None:
            return VMMFacts(status="none", end=self.ends.get(record.vm, "unknown"))
        return VMMFacts(status="running", pid=1, drift=drift_of(record.spec, spec.machine, spec.boot_args))

    def links(self, but: str = "") -> LinkDrift:
        return lambda _record: ()

    def watch(self, record: VMRecord) -> int | None:
        return None

    def start(self, record: VMRecord, *, deadline_s: float) -> str:
        self.calls.append("start")
        self._fault("start")
        with self._lock:
            self.vmms.setdefault(record.vm, self.boots_instead or record.spec)
        self._fault("start, late")
        return ""

    def set_paused(self, record: VMRecord, *, paused: bool, deadline_s: float) -> None:
        call = "pause" if paused else "resume"
        self.calls.append(call)
        self._fault(call)
        if paused:
            self.facts[record.vm] = VMMFacts(status="paused", pid=1)
        else:
            self.facts.pop(record.vm, None)

    def suspend(self, record: VMRecord, *, deadline_s: float) -> None:
        """It never is asked to."""

    def update(self, record: VMRecord, *, deadline_s: float) -> None:
        """Nothing that it has changes live."""

    def stop(self, record: VMRecord, *, grace_s: float) -> None:
        self.calls.append("stop")
        self.graces.append(grace_s)
        self._fault("stop")
        self.vmms.pop(record.vm, None)
        self.facts.pop(record.vm, None)

    def delete(self, record: VMRecord) -> None:
        self.calls.append("delete")
        self._fault("delete")
        self.vmms.pop(record.vm, None)

    def strays(self, known: Container[str]) -> tuple[Stray, ...]:
        return ()

    def foreign(self) -> tuple[Stray, ...]:
        return ()

    def trim(self) -> None:
        self.calls.append("trim")

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        content = f"MIKROM-UP {vm}".encode()[-max_bytes:]
        return Console(content=content, end=len(content))

    def _fault(self, when: str) -> None:
        if self.faults[when]:
            raise self.faults[when].pop(0)


def desired_vm(
    vm: str, spec: VMSpec = SPEC, *, state: State = "running", project: str = "shop", prune_max: int = 1
) -> DesiredVM:
    policy = Policy(prune_max=prune_max)
    digest = spec_digest(project=project, fleet="web", state=state, spec=spec, policy=policy)
    return DesiredVM(
        name=vm, project=project, fleet="web", host=HOST, state=state, spec=spec, policy=policy, spec_digest=digest
    )


def order(
    verb: Verb,
    vm: str,
    seen: ObservedVM | VMRecord | None = None,
    *,
    desired: DesiredVM | None = None,
    token: int = 1,
    project: str = "shop",
    deadline_s: float = 60.0 * SLOWNESS,
    host: str = HOST,
    moved_from: str = "",
) -> Order:
    """An order as a plan would make it after `seen` was observed; to be as `desired_vm` says unless told otherwise."""
    if desired is None and verb not in {"delete", "import", "forget"}:
        states: dict[str, State] = {"stop": "stopped", "pause": "paused"}
        desired = desired_vm(vm, project=project, state=states.get(verb, "running"))
    expect = Expect(uid=seen.uid if seen else None, generation=seen.generation if seen else 0)
    content = {"verb": verb, "host": host, "vm": vm, "project": project, "desired": desired, "expect": expect}
    more = {"deadline_s": deadline_s, "moved_from": moved_from}
    action = Action(id=digest_of(content), **content, **more)  # type: ignore[arg-type]
    return Order(run_id=f"run-{token}", token=token, action=action)

"""A world of hosts with a hidden truth, for properties of the planner.

It carries out actions by rules of its own, written from the design and not from the code under test, and it knows
what is on dark hosts. What it shares with the code is only the language of the reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count

from mikrom_reconcile.core.model.desired import DesiredVM, Halt, Policy, State, VMSpec
from mikrom_reconcile.core.model.encoding import fleet_digest, row_digest
from mikrom_reconcile.core.model.fields import needs_restart
from mikrom_reconcile.core.model.observed import (
    Attempt,
    Before,
    Capacity,
    Drift,
    HostReport,
    HostView,
    ObservedState,
    ObservedVM,
    ObserveQuery,
    Phase,
    Progress,
    Trial,
)
from mikrom_reconcile.core.model.plan import Action, RunOverrides
from mikrom_reconcile.core.planning.context import PlanInput, PlanResult
from mikrom_reconcile.core.planning.planner import make_plan, requery_all

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Truth:
    """What is really there for one VM on one host."""

    project: str
    fleet: str
    state: State
    spec: VMSpec
    policy: Policy
    spec_digest: str
    phase: Phase
    generation: int = 1
    token: int = 1
    uid: str = "u0"
    drift: tuple[Drift, ...] = ()
    last_error: str | None = None
    addresses: dict[str, str] = field(default_factory=dict)
    attempt: Attempt | None = None
    up_s: float = 3600.0
    trial_token: int = 1
    since_s: float = 3600.0
    proven: bool = True
    canary: bool = False
    halt: Halt | None = None
    unmanaged: bool = False
    before: Before | None = None


@dataclass
class World:
    """Hosts by name, each a mapping of VM name to truth; `dark` hosts answer nothing and do nothing. `attempts` are
    those to make VMs that are not there.
    """

    hosts: dict[str, dict[str, Truth]]
    dark: set[str] = field(default_factory=set)
    capacity: dict[str, Capacity] = field(default_factory=dict)
    token: int = 10
    uids: count[int] = field(default_factory=count)
    acted: list[Action] = field(default_factory=list)
    released: dict[str, float] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    now: datetime = NOW

    def observe(self, queries: dict[str, ObserveQuery]) -> ObservedState:
        return ObservedState(taken_at=self.now, hosts=tuple(self._view(host, query) for host, query in queries.items()))

    def _view(self, host: str, query: ObserveQuery) -> HostView:
        if host in self.dark or host not in self.hosts:
            return HostView(host=host, error="no answer")
        rows = [self._row(host, name, truth) for name, truth in self.hosts[host].items()]
        own = [row for row in rows if row.project == query.project and not row.unmanaged]
        fleets = {row.fleet for row in own}
        digests = {
            fleet: fleet_digest(
                (row.name, row_digest(row.spec_digest, row.addresses), row.phase, row.drift)
                for row in own
                if row.fleet == fleet
            )
            for fleet in fleets
        }
        differ = {fleet for fleet in fleets | set(query.known) if query.known.get(fleet) != digests.get(fleet)}
        strangers = bool(differ) or query.others
        shown = [row for row in rows if (row.fleet in differ if row in own else strangers or row.phase == "unreadable")]
        tokens = {row.project: row.token for row in sorted(rows, key=lambda row: row.token)}
        return HostView(
            host=host,
            report=HostReport(
                host=host,
                observed_at=NOW,
                capacity=self.capacity.get(host, Capacity(vcpu_count=64, mem_size_mib=1 << 20)),
                promised=self.promised(host),
                highest_tokens=tokens,
                digests=digests,
                vms=tuple(shown),
                maturing={
                    row.name: least_s - self.hosts[host][row.name].up_s
                    for row in rows
                    if row.phase in {"running", "paused"}
                    and (least_s := query.min_healthy_s.get(row.fleet, 0.0)) > self.hosts[host][row.name].up_s
                },
                attempts=self.attempts,
                unproven={
                    row.name: limit_s - self.hosts[host][row.name].since_s
                    for row in rows
                    if (limit_s := query.trials.get(row.fleet)) is not None and not self._proven(host, row, query)
                },
                progress=self._progress(host, query),
                canaries=tuple(name for name, truth in self.hosts[host].items() if truth.canary),
                halts={name: truth.halt for name, truth in self.hosts[host].items() if truth.halt},
                released=self.released | {ip: -1.0 for row in rows if row.unmanaged for ip in row.addresses.values()},
                before={name: it.before for name, it in self.hosts[host].items() if query.before and it.before},
            ),
        )

    def _proven(self, host: str, row: ObservedVM, query: ObserveQuery) -> bool:
        truth = self.hosts[host][row.name]
        least_s = query.min_healthy_s.get(row.fleet, 0.0)
        return truth.proven or (truth.phase in {"running", "paused"} and truth.up_s >= least_s)

    def _progress(self, host: str, query: ObserveQuery) -> dict[str, Progress]:
        found = {}
        for fleet in query.trials:
            own = [truth for truth in self.hosts[host].values() if truth.fleet == fleet]
            if own:
                token, age_s = max(truth.trial_token for truth in own), min(truth.since_s for truth in own)
                found[fleet] = Progress(token=token, age_s=age_s)
        return found

    def promised(self, host: str) -> Capacity:
        """What VMs of all projects that are ordered to be up may take of the host."""
        up = [truth for truth in self.hosts[host].values() if truth.state in {"running", "paused"}]
        machines = [truth.spec.machine for truth in up if truth.phase not in {"crash_loop", "unreadable"}]
        return Capacity(
            vcpu_count=sum(machine.vcpu_count for machine in machines),
            mem_size_mib=sum(machine.mem_size_mib for machine in machines),
        )

    def _row(self, host: str, name: str, truth: Truth) -> ObservedVM:
        return ObservedVM(
            name=name,
            uid=truth.uid,
            project="" if truth.phase == "unreadable" else truth.project,
            fleet=truth.fleet,
            host=host,
            phase=truth.phase,
            state=truth.state,
            spec=truth.spec,
            policy=truth.policy,
            spec_digest=truth.spec_digest,
            generation=truth.generation,
            token=truth.token,
            created_at=NOW,
            drift=truth.drift,
            last_error=truth.last_error,
            addresses=truth.addresses,
            attempt=truth.attempt,
            halt=truth.halt,
            unmanaged=truth.unmanaged,
            trial=Trial(since=NOW, token=truth.trial_token, canary=truth.canary),
        )

    def act(self, action: Action) -> str:
        """Carry out one action as an honest host would; the result in the engine's words."""
        assert action.host not in self.dark, "an action was sent to a dark host"
        there = self.hosts[action.host]
        found = there.get(action.vm) or there.get(action.moved_from)
        seen = (found.uid, found.generation) if found else (None, 0)
        if (action.expect.uid, action.expect.generation) != seen:
            return "stale"
        assert found is None or found.project == action.project, "an action on a VM of another project"
        self.acted.append(action)
        if action.verb == "delete":
            self.released |= dict.fromkeys(there.pop(action.vm).addresses.values(), 0.0)
            return "done"
        if action.verb in {"rename", "import", "forget"} and not (action.desired and action.desired.adopts):
            assert found is not None
            there.pop(action.moved_from, None)
            there[action.vm] = refactored(found, action)
            return "done"
        wanted = action.desired
        assert wanted is not None
        fresh = found is None or found.phase == "deleting"
        alive = found is not None and found.phase in {"running", "paused", "unresponsive", "socket_lost", "stopping"}
        phase: Phase = "stopped" if wanted.state == "absent" else wanted.state
        if action.verb == "update":
            assert found is not None
            phase = found.phase
        if action.verb in {"pause", "resume"}:
            assert found is not None
            assert found.phase == ("running" if action.verb == "pause" else "paused")
        on_trial = fresh or found is None or found.phase == "crash_loop" or needs_restart(found.spec, wanted.spec)
        goes_back = found is not None and found.before if wanted.goes_back else None
        keeps_drift = action.verb in {"update", "pause", "resume"} and alive and found is not None
        there[action.vm] = Truth(
            project=action.project,
            fleet=wanted.fleet,
            state=wanted.state,
            spec=wanted.spec,
            policy=wanted.policy,
            spec_digest=wanted.spec_digest,
            phase=phase,
            generation=(found.generation if found else 0) + 1,
            token=self.token,
            uid=f"u{next(self.uids)}" if fresh or found is None else found.uid,
            drift=found.drift if keeps_drift and found is not None else (),
            addresses=wanted.addresses,
            trial_token=goes_back.token
            if goes_back
            else (wanted.rollout or self.token)
            if on_trial or found is None
            else found.trial_token,
            since_s=0.0 if on_trial or found is None else found.since_s,
            proven=False if on_trial or found is None else found.proven,
            canary=bool(wanted.canary)
            if wanted.canary is not None or found is None
            else found.canary and found.spec == wanted.spec,
            halt=wanted.halt or (found.halt if found and found.spec == wanted.spec else None),
            before=self._before(found, wanted),
        )
        return "done"

    @staticmethod
    def _before(found: Truth | None, wanted: DesiredVM) -> Before | None:
        if found is None or wanted.goes_back or not needs_restart(found.spec, wanted.spec):
            return found.before if found else None
        if wanted.rollout is None:
            return None
        is_proven = found.proven or found.phase == "running"
        was = Before(spec=found.spec, token=found.trial_token, addresses=found.addresses)
        return was if is_proven else found.before

    def copies(self, name: str, project: str) -> list[str]:
        """The hosts, dark ones included, that have a VM of this name and project."""
        return [host for host, vms in self.hosts.items() if name in vms and vms[name].project == project]

    def copy(self) -> World:
        return replace(self, hosts={host: dict(vms) for host, vms in self.hosts.items()}, acted=[])


def refactored(found: Truth, action: Action) -> Truth:
    """What runs stays as it is; who it is changes, or whose."""
    found = replace(found, generation=found.generation + 1, unmanaged=action.verb == "forget")
    if action.verb != "rename":
        return found
    assert action.desired is not None
    return replace(found, fleet=action.desired.fleet, spec_digest=action.desired.spec_digest)


def decided(
    asked: PlanInput,
    observe: Callable[[dict[str, ObserveQuery]], ObservedState],
    limits: RunOverrides,
) -> PlanResult:
    """What is decided once nothing is ambiguous, as the engine asks."""
    asked = requery_all(asked) if limits.promote or limits.abort or limits.retry else asked
    decision = make_plan(asked, observe(asked.queries), limits)
    if not decision.ambiguous:
        return decision
    again = requery_all(asked)
    decision = make_plan(again, observe(again.queries), limits)
    assert not decision.ambiguous
    return decision

"""What a file of tests/cases may say, and the specs and the world that it describes. How to write one is told in
tests/cases/test_cases.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from mikrom_reconcile.core.model.desired import Freeze, Halt, Policy, Share, State, VMSpec
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.core.model.fields import RECORD, drop_paths
from mikrom_reconcile.core.model.observed import (
    Attempt,
    Before,
    Capacity,
    Drift,
    HostView,
    ObservedState,
    ObserveQuery,
    Phase,
    Placements,
)
from mikrom_reconcile.core.model.plan import Peak, RunOverrides
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.core.planning.context import LEFT_OUT, PlanResult
from mikrom_reconcile.core.planning.planner import prepare
from mikrom_reconcile.core.specs.load import Specs, UnplacedVM, expand
from mikrom_reconcile.core.specs.resolve import Resolver
from mikrom_reconcile.wiring import schemas
from tests.properties.world import NOW, Truth, World, decided

HERE = "localhost"
Words = str | list[str] | None


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As in RunRequest."""

    destroy: bool = False
    prune_max: Share | None = None
    confirmed: tuple[str, ...] = ()
    extra_vars: dict[str, Any] = {}
    limit: str | None = None
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()
    assume_dead: tuple[str, ...] = ()
    without_hosts: tuple[str, ...] = ()
    retry: bool = False
    promote: tuple[str, ...] = ()
    abort: tuple[str, ...] = ()
    drift_mode: Literal["enforce", "report"] | None = None
    override_freeze: bool = False


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What differs from what the specs want of a VM on its host; where they want none of its name, from a running
    `hello` of the fleet that its name begins with. `drift` maps a path to what the VMM really has. `attempt` was one to
    bring it to what the specs want; `up_s` is how long it has been up, `since_s` since its spec was changed by the run
    with `token`, and it was healthy since then if it is up now, or `proven`. A `canary` waits to be promoted; `halted`
    says why nobody is to follow to what the specs want, `reverted` why it went back from there; `before` is in what its
    spec differed when it was healthy with another, at the run with the token `before_token`; one that is
    `unmanaged` was let go.
    """

    project: str | None = None
    fleet: str | None = None
    state: State | None = None
    phase: Phase | None = None
    spec: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    drift: dict[str, int | str] = {}
    digest: str | None = None
    token: int = 1
    last_error: str | None = None
    addresses: dict[str, str] = {}
    attempt: dict[str, Any] | None = None
    up_s: float = 3600.0
    since_s: float = 3600.0
    proven: bool = False
    canary: bool = False
    halted: str = ""
    unmanaged: bool = False
    reverted: str = ""
    before: dict[str, Any] | None = None
    before_token: int = 0


class Expect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`refusals` are keyed by `rule fleet` or `rule VM`, `problems` by `path:line:column`. `vms` maps every name to
    some of its values by path. `canaries` are the VMs whose hosts are to note that others wait for them.
    """

    changes: dict[str, Words] = {}
    unchanged: dict[str, int] = {}
    refusals: dict[str, Words] = {}
    warnings: list[Words] = []
    remembers: Placements | None = None
    peaks: dict[str, Peak] | None = None
    canaries: list[str] = []
    again_s: float | None = None
    problems: dict[str, Words] | None = None
    unmatched: str = ""
    error: str | None = None
    vms: dict[str, dict[str, Any] | None] | None = None


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    specs: str | dict[str, str]
    expect: Expect
    request: Request = Request()
    remembered: Placements = Placements()
    hosts: dict[str, dict[str, Row | Literal["as wanted"]]] = {}
    capacity: dict[str, Capacity] = {}
    dark: set[str] = set()
    released: dict[str, float] = {}
    attempts: dict[str, dict[str, Any]] = {}
    frozen: dict[str, Freeze] = {}
    now: datetime = NOW

    @property
    def texts(self) -> dict[str, str]:
        return self.specs if isinstance(self.specs, dict) else {"fleet.yml": self.specs}

    @property
    def tree(self) -> SourceTree:
        files = tuple(SourceFile(path=path, text=text) for path, text in self.texts.items())
        return SourceTree(revision="r1", files=files)

    def read_specs(self) -> Specs:
        return validate_specs(self.tree, schemas(), here=HERE, extra_vars=self.request.extra_vars)

    def validated(self) -> Specs:
        """As people validate: with what rendering finds beside mistakes of the documents."""
        return validate_specs(self.tree, schemas(), here=HERE, extra_vars=self.request.extra_vars)

    def decide(self) -> tuple[PlanResult, World]:
        """The decision of this run, and the world that it was made in."""
        specs, wish = self.read_specs(), self.request
        dead = wish.assume_dead + wish.without_hosts
        asked = prepare(specs, self.remembered, here=HERE, destroy=wish.destroy, dead=dead)
        asked = msgspec.structs.replace(asked, freezes=self.frozen)
        unasked = (self.hosts.keys() | self.dark) - asked.queries.keys()
        assert not unasked, f"nobody asks {unasked}"
        pending = {vm.name: vm for vm in expand(specs)}
        hosts = {
            host: {
                name: truth(specs, pending.get(name), host, name, Row() if row == "as wanted" else row)
                for name, row in ranged(self.hosts.get(host, {}))
            }
            for host in asked.queries
        }
        failed = {name: attempt_of(specs, pending[name], HERE, told) for name, told in ranged(self.attempts)}
        world = World(hosts, self.dark, self.capacity, attempts=failed, released=self.released, now=self.now)
        overrides = RunOverrides(
            prune_max=wish.prune_max,
            confirmed=wish.confirmed,
            retry=wish.retry,
            promote=wish.promote,
            abort=wish.abort,
            drift_mode=wish.drift_mode,
            limit=wish.limit,
            tags=wish.tags,
            skip_tags=wish.skip_tags,
            override_freeze=wish.override_freeze,
        )
        left_out = tuple(HostView(host=host, error=LEFT_OUT) for host in wish.without_hosts)

        def observe(queries: dict[str, ObserveQuery]) -> ObservedState:
            looked = {host: query for host, query in queries.items() if host not in wish.without_hosts}
            state = world.observe(looked)
            return msgspec.structs.replace(state, hosts=state.hosts + left_out)

        return decided(asked, observe, overrides), world


class _Loader(yaml.CSafeLoader):
    """YAML in which no key is written twice: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), f"a key is written twice{node.start_mark}"
        return super().construct_mapping(node, deep)


def read_case(file: Path) -> Case:
    return msgspec.convert(yaml.load(file.read_text(encoding="utf-8"), _Loader), Case)


def truth(specs: Specs, vm: UnplacedVM | None, host: str, name: str, row: Row) -> Truth:
    """What is there."""
    state, spec = Resolver(specs).resolve(vm, host) if vm else ("running", VMSpec(image="hello"))
    state = row.state or ("stopped" if state == "stopped" else "running")
    spec = msgspec.convert(msgspec.to_builtins(spec) | row.spec, VMSpec)
    policy = msgspec.structs.replace(vm.fleet.policy if vm else Policy(), **row.policy)
    project = row.project or specs.project
    fleet = row.fleet or (vm.fleet.name if vm else name.rpartition("-")[0])
    applied = drop_paths(spec, vm.fleet.ignore_changes if vm else ())
    written = flat(spec) | {RECORD: "as it was written"}
    return Truth(
        project=project,
        fleet=fleet,
        state=state,
        spec=spec,
        policy=policy,
        spec_digest=row.digest or spec_digest(project=project, fleet=fleet, state=state, spec=applied, policy=policy),
        phase=row.phase or ("running" if state == "running" else "stopped"),
        token=row.token,
        uid=f"{name}@{host}",
        drift=tuple(Drift(path=path, recorded=written[path], actual=real) for path, real in row.drift.items()),
        last_error=row.last_error,
        addresses=row.addresses,
        attempt=attempt_of(specs, vm, host, row.attempt) if vm and row.attempt is not None else None,
        up_s=row.up_s,
        trial_token=row.token,
        since_s=row.since_s,
        proven=row.proven,
        canary=row.canary,
        unmanaged=row.unmanaged,
        halt=Halt(
            spec_digest=attempt_of(specs, vm, host, {}).spec_digest,
            why=row.halted or row.reverted,
            outcome="halted" if row.halted else "reverted",
        )
        if vm and (row.halted or row.reverted)
        else None,
        before=Before(spec=msgspec.convert(msgspec.to_builtins(spec) | row.before, VMSpec), token=row.before_token)
        if row.before is not None
        else None,
    )


def attempt_of(specs: Specs, vm: UnplacedVM, host: str, told: dict[str, Any]) -> Attempt:
    """An attempt to bring `vm` to what the specs want of it, failed once unless told otherwise."""
    state, spec = Resolver(specs).resolve(vm, host)
    applied = drop_paths(spec, vm.fleet.ignore_changes)
    digest = spec_digest(project=specs.project, fleet=vm.fleet.name, state=state, spec=applied, policy=vm.fleet.policy)
    return Attempt(**{"spec_digest": digest, "count": 1, "error": "no kernel", **told})


def ranged(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries, `web-[000:001]` as web-000 and web-001."""
    for key, value in entries.items():
        match = re.match(r"(.*)\[(\d+):(\d+)\](.*)", key)
        if match is None:
            yield key, value
            continue
        for number in range(int(match[2]), int(match[3]) + 1):
            yield f"{match[1]}{number:0{len(match[2])}d}{match[4]}", value


def flat(value: Any, above: str = "") -> dict[str, Any]:
    """The values by path: {"machine.vcpu_count": 1}."""
    found: dict[str, Any] = {}
    for key, item in msgspec.to_builtins(value).items():
        found |= flat(item, f"{above}{key}.") if isinstance(item, dict) else {above + key: item}
    return found

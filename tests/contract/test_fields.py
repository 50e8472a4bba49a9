"""The table of fields against the real Firecracker: each impact is measured, none is believed."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mikrom_reconcile.core.case import Case
from mikrom_reconcile.core.diff import judge
from mikrom_reconcile.core.digests import spec_digest
from mikrom_reconcile.core.fields import FIELDS, recorded
from mikrom_reconcile.core.model.desired import DesiredVM, Policy, VMSpec
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import VMChange
from tests.contract.drivers import Bench, RealBench
from tests.contract.hosts import Host
from tests.fakes import SPEC, desired_vm

VM = "web-000"

MEASURED: dict[str, tuple[Any, str, str, str, str]] = {
    # path: another value, where GET /vm/config shows it, and the API's place and name for it
    "machine.vcpu_count": (2, "machine-config", "vcpu_count", "/machine-config", "vcpu_count"),
    "machine.mem_size_mib": (8, "machine-config", "mem_size_mib", "/machine-config", "mem_size_mib"),
    "machine.smt": (True, "machine-config", "smt", "/machine-config", "smt"),
    "boot_args": ("loud", "boot-source", "boot_args", "/boot-source", "boot_args"),
}
RECORD_ONLY: dict[str, Any] = {
    "restart.policy": "never",
    "restart.attempts": 9,
    "restart.interval": "1h",
    "restart.delay": "3s",
    "fleet": "api",
    "prune.max": 7,
    "prune.allow_empty": True,
    "lifecycle.prevent_destroy": True,
}
BY_OTHER_RULES = {"state", "image", "machine.cpu_template"}
"""A changed state is stopped, paused or started; there is but one image; a CPU template is of one maker's CPUs."""


class Socket(http.client.HTTPConnection):
    """Firecracker's API, asked without a driver."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> tuple[int, Any]:
        try:
            self.request(method, path, body=None if content is None else json.dumps(content))
            answer = self.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            self.close()


def config_of(bench: RealBench) -> dict[str, Any]:
    status, config = Socket(bench.socket(VM)).ask("GET", "/vm/config")
    assert status == 200
    return dict(config)


def changed(path: str, value: Any) -> DesiredVM:
    """The VM with another value at `path`, as a spec would want it."""
    fields: dict[str, Any] = {
        "spec": msgspec.to_builtins(SPEC), "fleet": "web", "prune": {"max": 1, "allow_empty": False}, "lifecycle": {},
    }  # fmt: skip
    steps = path.split(".")
    target = fields if steps[0] in fields else fields["spec"]
    for step in steps[:-1]:
        target = target[step]
    target[steps[-1]] = value
    policy = Policy(
        prune_max=fields["prune"]["max"],
        allow_empty=fields["prune"]["allow_empty"],
        prevent_destroy=fields["lifecycle"].get("prevent_destroy"),
    )
    known = {"project": "shop", "fleet": fields["fleet"], "state": "running", "policy": policy}
    known["spec"] = msgspec.convert(fields["spec"], VMSpec)
    return msgspec.structs.replace(desired_vm(VM), **known, spec_digest=spec_digest(**known))


def planned(desired: DesiredVM, seen: ObservedVM | None) -> VMChange:
    verdict = judge(Case(desired=desired, observed=seen))
    assert isinstance(verdict, VMChange)
    return verdict


def test_every_row_of_the_table_is_measured_here() -> None:
    elsewhere = (
        "boot.",
        "drives.",
        "network_interfaces.",
        "mmds.",
        "checks.",
    )  # tests of their own: media, networks, …
    rows = {path for path in FIELDS if not f"{path}.".startswith(elsewhere)}
    assert set(MEASURED) == {path for path in rows - BY_OTHER_RULES if FIELDS[path].observed == "vmm"}
    assert set(MEASURED) | set(RECORD_ONLY) | BY_OTHER_RULES == rows


@pytest.mark.kvm
@pytest.mark.parametrize("path", MEASURED)
def test_what_the_vmm_knows_costs_what_the_table_says(path: str, real: RealBench, own_environment: Path) -> None:
    host = Host(real, own_environment)
    value, section, shown_as, place, name = MEASURED[path]
    seen = host.created(VM, desired_vm(VM))
    before = config_of(real)
    assert before[section][shown_as] != value

    change = planned(changed(path, value), seen)
    assert change.kind == "restart"
    assert [(field.path, field.after, field.impact) for field in change.fields] == [(path, value, FIELDS[path].impact)]

    api = Socket(real.socket(VM))
    for method, content in (("PUT", before[section] | {name: value}), ("PATCH", {name: value})):
        status, answer = api.ask(method, place, content)
        assert status == 400, f"{method} changes it live: its impact is not restart"
        assert answer["fault_message"]
    assert config_of(real) == before
    assert [seen.pid] == real.pids(VM)

    (outcome,) = host.converge(VM, changed(path, value))
    assert outcome.result == "done", outcome.error
    assert config_of(real) == {**before, section: before[section] | {shown_as: value}}
    assert real.pids(VM) != [seen.pid]
    now = host.seen(VM)
    assert now is not None
    assert (now.drift, now.uid) == ((), seen.uid)


def test_what_only_the_record_knows_leaves_the_vmm_alone(bench: Bench, own_environment: Path) -> None:
    host = Host(bench, own_environment)
    seen = host.created(VM, desired_vm(VM))
    before = config_of(bench) if type(bench) is RealBench else {}
    for path, value in RECORD_ONLY.items():
        change = planned(changed(path, value), host.seen(VM))
        assert change.kind == "update"
        assert (path, value, "record") in [(field.path, field.after, field.impact) for field in change.fields]
        assert [outcome.result for outcome in host.converge(VM, changed(path, value))] == ["done"]
        assert [seen.pid] == bench.pids(VM)
        now = host.seen(VM)
        assert now is not None
        there: Any = recorded(fleet=now.fleet, state=now.state, spec=now.spec, policy=now.policy)
        for step in path.split("."):
            there = there[step]
        assert there == value
    if type(bench) is RealBench:
        assert config_of(bench) == before


@pytest.mark.kvm
def test_a_cpu_template_reaches_the_vmm_or_says_why_it_cannot(real: RealBench, own_environment: Path) -> None:
    host = Host(real, own_environment)
    order = host.next_order(VM, changed("machine.cpu_template", "T2"))
    assert order is not None
    outcome = host.hypervisor.execute(order)
    if outcome.result == "done":  # an Intel CPU that has it
        assert config_of(real)["machine-config"]["cpu_template"] == "T2"
    else:
        assert "CPU template" in str(outcome.error)
        assert real.pids(VM) == []

"""What a guest reads of itself: as its spec says, secrets in place there and nowhere else, changed while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Machine, NetworkInterface, VMSpec
from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver
from mikrom_reconcile.host.resources.provisioner import ResourceProvisioner, Secrets
from tests.contract.drivers import ANSWER_S, RealBench
from tests.contract.field_rows import Socket
from tests.contract.hosts import Host
from tests.fakes import desired_vm, order
from tests.guests import MEM_MIB
from tests.netns import own_namespace

pytestmark = pytest.mark.kvm
VM = "web-000"


class BenchWithSecrets(RealBench):
    def another(self) -> FirecrackerDriver:
        state_dir = self.folder / "state"
        return FirecrackerDriver(
            self.binary,
            state_dir=state_dir,
            run_dir=self.folder / "run",
            provisioner=ResourceProvisioner(state_dir, secrets=Secrets((self.folder / "secrets",))),
            answer_s=ANSWER_S,
        )


@pytest.fixture
def bench(real: RealBench, own_environment: Path) -> Iterator[RealBench]:
    (own_environment / "secrets").mkdir()
    (own_environment / "secrets/password").write_text("hunter2")
    with own_namespace():
        yield BenchWithSecrets(str(real.binary), own_environment)


@pytest.fixture
def host(bench: RealBench, own_environment: Path) -> Host:
    return Host(bench, own_environment)


def wanted(mmds: dict[str, Any] | None) -> DesiredVM:
    nic = NetworkInterface(network="prod", cidr="10.0.0.0/24", gateway="10.0.0.1")
    spec = VMSpec(image="hello", machine=Machine(mem_size_mib=MEM_MIB), network_interfaces={"eth0": nic}, mmds=mmds)
    return replace(desired_vm(VM, spec), addresses={"eth0": "10.0.0.9"})


def metadata(bench: RealBench) -> dict[str, Any]:
    status, found = Socket(bench.socket(VM)).ask("GET", "/mmds")
    assert status == 200
    return dict(found)


def test_a_guest_reads_who_it_is_and_what_its_spec_says_and_changes_reach_it(
    host: Host, bench: RealBench, own_environment: Path
) -> None:
    secret = {"secret_ref": f"file://{own_environment}/secrets/password"}
    pid = host.created(VM, wanted({"role": "web", "db": {"password": secret}})).pid
    found = metadata(bench)
    assert found["db"] == {"password": "hunter2"}
    assert found["mikrom"]["network_interfaces"]["eth0"]["ip"] == "10.0.0.9"
    assert (found["mikrom"]["name"], found["role"]) == (VM, "web")
    assert "hunter2" not in str(host.seen(VM))
    for file in (own_environment / "state").rglob("*"):
        assert not file.is_file() or b"hunter2" not in file.read_bytes(), file

    outcomes = host.converge(VM, wanted({"role": "api", "db": {"password": secret}}))
    assert [(outcome.verb, outcome.result) for outcome in outcomes] == [("update", "done")]
    assert metadata(bench)["role"] == "api"
    assert bench.pids(VM) == [pid]
    assert [outcome.verb for outcome in host.converge(VM, wanted(None))] == ["restart"]


def test_a_secret_that_was_changed_is_drift_that_tells_nothing(
    host: Host, bench: RealBench, own_environment: Path
) -> None:
    desired = wanted({"password": {"secret_ref": f"file://{own_environment}/secrets/password"}})
    host.created(VM, desired)
    (own_environment / "secrets/password").write_text("correct horse")
    seen = host.seen(VM)
    assert seen is not None
    assert [(drift.path, drift.actual) for drift in seen.drift] == [("mmds.password", "(changed)")]
    assert [outcome.verb for outcome in host.converge(VM, desired)] == ["update"]
    assert metadata(bench)["password"] == "correct horse"
    (own_environment / "secrets/password").unlink()
    unread = host.seen(VM)
    assert unread is not None
    assert unread.drift == ()


def test_a_change_that_failed_is_not_recorded_and_is_tried_again_until_it_is_seen(
    host: Host, bench: RealBench, own_environment: Path
) -> None:
    secret = own_environment / "secrets/other"
    desired = wanted({"role": "api", "other": {"secret_ref": f"file://{secret}"}})
    host.created(VM, wanted({"role": "web"}))
    for _ in range(2):  # the same order again acts again
        given = host.next_order(VM, desired)
        assert given is not None
        assert given.action.verb == "update"
        outcome = host.agent.execute(given)
        assert outcome.result == "failed_permanent"
        assert metadata(bench)["role"] == "web"
        assert host.record(VM).last_error is None, "it lives, so nothing is wrong with its state"
    secret.write_text("swordfish")
    assert [(outcome.verb, outcome.result) for outcome in host.converge(VM, desired)] == [("update", "done")]
    assert metadata(bench)["other"] == "swordfish"
    assert (host.record(VM).attempt, host.record(VM).last_error) == (None, None)
    bench.kill(VM)
    seen = host.seen(VM)
    assert seen is not None
    assert seen.phase == "killed", "its host brings it back"


def test_the_same_update_acts_again_when_somebody_undid_it(host: Host, bench: RealBench) -> None:
    seen = host.created(VM, wanted({"role": "web"}))
    given = host.order("update", VM, seen, desired=wanted({"role": "api"}))
    assert [host.agent.execute(given).result for _ in range(2)] == ["done", "already_done"]
    assert Socket(bench.socket(VM)).ask("PATCH", "/mmds", {"role": "odd"})[0] == 204
    assert host.agent.execute(given).result == "done"
    assert metadata(bench)["role"] == "api"


def test_a_secret_that_is_not_there_stops_that_vm_before_anything_is_started(host: Host, bench: RealBench) -> None:
    desired = wanted({"password": {"secret_ref": "env://HOME"}})
    outcome = host.agent.execute(order("create", VM, desired=desired))
    assert outcome.result == "failed_permanent"
    assert "MIKROM_SECRET_ENV of this host does not name HOME (while resolving its secrets)" in str(outcome.error)
    assert bench.pids(VM) == []

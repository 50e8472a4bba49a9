"""`mikrom drift` over real microVMs: what somebody did to them, and what the specs have changed since."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from pathlib import Path

import pytest

from mikrom_reconcile.system.netlink import Netlink
from tests.command import Mikrom, document, write_specs
from tests.e2e.test_demo_guest import UnixConnection, wait_until
from tests.netns import own_namespace

pytestmark = pytest.mark.kvm

SPECS = """\
apiVersion: mikrom/v1
kind: Network
metadata: {name: prod}
spec: {cidr: 10.9.0.0/24, guard: false}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 4
  template:
    image: hello
    boot_args: %s
    machine: {mem_size_mib: 4}
    network_interfaces: {eth0: {network: prod}}
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes taps")
def test_what_was_done_to_vms_is_told_with_its_cause_and_what_the_specs_changed_is_pending(
    mikrom: Mikrom, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIKROM_DRIVER", "firecracker")
    write_specs(folder, SPECS % "a")
    failed: list[BaseException] = []

    def inside() -> None:
        try:
            with own_namespace():
                try:
                    look(mikrom, folder)
                finally:
                    mikrom("destroy", "--yes")
        except BaseException as error:  # noqa: BLE001 - raised where pytest sees it
            failed.append(error)

    thread = threading.Thread(target=inside)  # a namespace is a thread's own
    thread.start()
    thread.join()
    for error in failed:
        raise error


def look(mikrom: Mikrom, folder: Path) -> None:
    mikrom("apply", "--yes")
    assert mikrom("drift").stdout == "No drift.\n"
    vms = {vm["name"]: vm for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]}
    os.kill(vms["web-000"]["pid"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{vms['web-000']['pid']}").exists(), "its end")
    paused(folder, "web-001")
    with Netlink() as kernel:
        tap = next(link for link in kernel.links() if "vm=web-002" in link.alias)
        kernel.delete(tap.index)
    (folder / "state/vms/web-003/record.json").write_text("{}")
    write_specs(folder, (SPECS % "b").replace("replicas: 4", "replicas: 5"))
    found = document("drift", mikrom("drift", "-o", "json", code=2))
    causes = {vm["vm"]: {field["path"]: field["cause"] for field in vm["fields"]} for vm in found["drift"]}
    assert causes["web-000"] == {"phase": "killed"}
    assert causes["web-001"] == {"phase": "api"}
    assert causes["web-002"] == {"network_interfaces.eth0": "tap-gone"}
    assert causes["web-003"] == {"record": "record-edited"}
    assert [vm["vm"] for vm in found["drift"]] == [f"web-00{number}" for number in range(4)]
    assert [change["vm"] for change in found["pending"]] == [f"web-00{number}" for number in range(5)]


def paused(folder: Path, vm: str) -> None:
    with closing(UnixConnection(folder / "run" / vm / "api.sock")) as connection:
        connection.request("PATCH", "/vm", '{"state": "Paused"}', {"Content-Type": "application/json"})
        assert connection.getresponse().status == 204

"""Rolling changes of real microVMs. How many are down is what /proc says, not what a report does."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from itertools import pairwise
from pathlib import Path

import pytest

from tests.command import Mikrom, document
from tests.fleet import wait_until
from tests.watch import VMM, Watch

VMS = 20
NAMES = [f"web-{number:03d}" for number in range(VMS)]
SPECS = """
apiVersion: mikrom/v1
kind: Image
metadata: {{name: own}}
spec:
  kernel: {{source: "file://{kernel}", sha256: {sha256}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: {vms}
  template: {{image: {image}, machine: {{mem_size_mib: 4}}, boot_args: "{boot_args}"}}
  rollout: {{serial: [1, 2], min_healthy_time: 300ms{more}}}
"""
GOES_BACK = ", auto_revert: true"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

pytestmark = pytest.mark.kvm


class Site:
    """Twenty microVMs of one fleet, and the folder that images may come from."""

    def __init__(self, folder: Path, mikrom: Mikrom, watch: Watch) -> None:
        self.folder, self.mikrom, self.watch = folder, mikrom, watch
        self._specs = folder / "specs" / "web.yml"
        self.kernel = folder / "state" / "images" / "own.elf"

    def write(self, image: str = "hello", boot_args: str = "", content: bytes = b"", more: str = "") -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        text = SPECS.format(kernel=self.kernel, sha256=sha256, vms=VMS, image=image, boot_args=boot_args, more=more)
        self._specs.write_text(text)

    def begun(self, more: str = "") -> dict[str, VMM]:
        """The site after a first run."""
        self.write(more=more)
        self.mikrom("apply", "--yes")
        self.watch.fewest = VMS
        return self.vmms()

    def vmms(self) -> dict[str, VMM]:
        return {vmm.vm: vmm for vmm in self.watch.now()}

    def wait_for(self, more: int) -> None:
        """Until so many more VMMs were started."""
        expected = self.watch.started + more
        self.watch.wait_until(lambda watch: watch.started >= expected, f"{more} more VMMs")

    def rollout(self) -> str:
        (fleet,) = document("fleets", self.mikrom("get", "fleets", "-o", "json"))["fleets"]
        return str(fleet["rollout"])


@pytest.fixture
def site(folder: Path, mikrom: Mikrom, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Kills what a test leaves."""
    monkeypatch.setenv("MIKROM_DRIVER", "firecracker")
    with Watch(folder / "run") as watch:
        try:
            yield Site(folder, mikrom, watch)
        finally:
            for vmm in watch.now():
                with suppress(ProcessLookupError):
                    os.kill(vmm.pid, signal.SIGKILL)


def test_batches_follow_each_other_once_they_were_up_for_long_enough(site: Site) -> None:
    before = site.begun()
    site.write(boot_args="quiet")
    assert "batch 1 of 11 (1, 9 x 2, 1 VMs)" in site.mikrom("plan").stdout
    site.mikrom("apply", "--yes")
    after = site.vmms()
    assert after.keys() == before.keys()
    assert not {*after.values()} & {*before.values()}
    assert site.watch.fewest >= VMS - 2
    assert site.watch.doubles == []
    started = [after[name].starttime / TICKS_PER_S for name in NAMES]
    batches = [started[:1], *(started[first : first + 2] for first in range(1, VMS, 2))]
    for one, other in pairwise(batches):
        assert min(other) >= max(one) + 0.28, "a batch began before the one before it had been up for 300 ms"
    assert site.rollout() == ""


def test_it_goes_on_after_its_controller_was_killed(site: Site) -> None:
    before = site.begun()
    site.write(boot_args="quiet")
    for more in (1, 2, 4, 3):
        apply = subprocess.Popen([sys.executable, "-m", "mikrom_reconcile", "apply", "--yes"], cwd=site.folder)
        site.wait_for(more)
        apply.kill()
        apply.wait()
    site.mikrom("apply", "--yes")
    after = site.vmms()
    assert after.keys() == before.keys()
    assert not {*after.values()} & {*before.values()}
    assert site.watch.fewest >= VMS - 2
    assert site.watch.doubles == []


def test_a_kernel_that_does_not_start_halts_it_until_the_spec_changes(site: Site) -> None:
    before = site.begun()
    site.kernel.write_bytes(b"no kernel")
    site.write("own", content=b"no kernel")
    told = site.mikrom("apply", "--yes", code=2 | 8).stdout
    assert "[halted]" in told
    assert site.vmms() == {name: before[name] for name in NAMES[1:]}
    told = site.mikrom("apply", "--yes", code=8).stdout  # as Beat does at its next tick
    assert "1 of 1 VMs of batch 1 failed, max_fail_percentage allows 0 %: web-000 (failed" in told
    assert site.rollout() == "halted"
    assert "the rollout of this fleet is halted" in site.mikrom("explain", "web-007").stdout
    site.mikrom("apply", "--yes", "--retry", code=2 | 8)
    assert site.vmms() == {name: before[name] for name in NAMES[1:]}
    site.write()
    site.mikrom("apply", "--yes")
    after = site.vmms()
    assert {name for name in NAMES if after[name] != before[name]} == {"web-000"}
    assert site.watch.fewest >= VMS - 1


def test_a_kernel_that_does_not_start_is_taken_back_by_the_run_that_brought_it(site: Site) -> None:
    before = site.begun(GOES_BACK)
    proof = site.folder / "state" / "proofs" / "web-000.json"
    wait_until(
        lambda: site.mikrom("plan").stdout and proof.exists(), "the first VM to have been healthy for long enough"
    )
    site.kernel.write_bytes(b"no kernel")
    site.write("own", content=b"no kernel", more=GOES_BACK)
    told = site.mikrom("apply", "--yes", code=8).stdout
    assert "[reverted]" in told
    after = site.vmms()
    assert {name for name in NAMES if after[name] != before[name]} == {"web-000"}
    assert site.rollout() == "reverted"
    assert "it goes back to what was healthy before" in site.mikrom("apply", "--yes", code=8).stdout
    site.mikrom("apply", "--yes", "--retry", code=8)
    site.write(more=GOES_BACK)
    site.mikrom("apply", "--yes")
    assert {name for name in NAMES if site.vmms()[name] != before[name]} == {"web-000"}, "it has the spec of before"
    assert site.watch.fewest >= VMS - 1
    assert site.watch.doubles == []


def test_what_is_mended_beside_the_specs_goes_on_by_retry(site: Site) -> None:
    before = site.begun()
    content = (resources.files("mikrom_reconcile") / "guest" / "hello.elf").read_bytes()
    site.write("own", content=content)
    site.mikrom("apply", "--yes", code=2 | 8)
    site.kernel.write_bytes(content)
    site.mikrom("apply", "--yes", code=8)
    assert {**before, **site.vmms()} == before, "a VM was taken to a spec with which the first one failed"
    site.mikrom("apply", "--yes", "--retry")
    assert not {*site.vmms().values()} & {*before.values()}
    assert site.watch.fewest >= VMS - 2

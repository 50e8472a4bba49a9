"""A file that somebody goes on writing gives its beginning back to the disk, and nothing that is to be kept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.errors import PermanentError
from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver
from mikrom_reconcile.host.drivers.vmm import StateLayout
from mikrom_reconcile.system.files import free_head
from mikrom_reconcile.times_and_sizes import VMMS


def test_a_small_file_whose_blocks_were_allocated_ahead_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"said")
    # as XFS does by itself for who appends
    subprocess.run([shutil.which("fallocate") or "fallocate", "-n", "-l", "3MiB", path], check=True)
    assert path.stat().st_blocks * 512 > 2 << 20
    free_head(path, max_bytes=1 << 20)
    assert path.read_bytes() == b"said"


def test_a_console_that_cannot_be_capped_leaves_no_other_one_uncapped(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    consoles = [state_dir / "vms" / vm / "console.log" for vm in ("a", "b")]
    for console in consoles:
        console.parent.mkdir(parents=True)
    consoles[1].write_bytes(b"x" * 3 * VMMS.console_bytes)
    consoles[0].symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"x" * 3 * VMMS.console_bytes)
    driver = FirecrackerDriver(Path("/bin/true"), state_dir=state_dir, run_dir=tmp_path / "run")
    with pytest.raises(PermanentError, match=r"^a: .*\(while capping its console\)$"):
        driver.trim()
    assert consoles[1].stat().st_blocks * 512 <= 2 * VMMS.console_bytes
    assert (tmp_path / "elsewhere").stat().st_blocks * 512 > 2 * VMMS.console_bytes


def test_capping_looks_only_at_vms_that_are_still_there(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    for vm in ("a", "gone"):
        (tmp_path / "locks" / f"{vm}.vmm").touch()  # a lock file stays for ever
    (tmp_path / "vms" / "a").mkdir(parents=True)
    layout = StateLayout(tmp_path, tmp_path / "run")
    assert list(layout.folders()) == ["a"]
    assert list(layout.vms()) == ["a", "gone"]

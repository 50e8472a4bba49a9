"""What a guest has synced outlives a power cut of its host: the QEMU that emulates the host is killed.

The emulated host has its state on a disk of its own, which is a file of this machine. What its kernel has written there
stays, in this machine's memory or on its disk; what was only in the memory of the emulated host is gone with it. That
would be all that a guest writes if a host did not take its flushes: so it was with Firecracker's own default, `Unsafe`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import nested_host
from tests.e2e.test_linux_guest import pin
from tests.linux_guest import BOOT_ARGS, built, make_rootfs

REASON = nested_host.why_not()
pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600), pytest.mark.skipif(bool(REASON), reason=REASON)]

SPECS = """\
apiVersion: mikrom/v1
kind: Project
metadata: {{name: demo}}
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: linux}}
spec:
  kernel: {kernel}
  initrd: {initrd}
  rootfs: {rootfs}
  boot_args: "{boot_args}"
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec:
  replicas: 1
  template: {{image: linux, machine: {{mem_size_mib: 128}}, drives: {{data: {{size_mib: 4}}}}}}
"""

HOST = r"""
echo 0 >/proc/sys/vm/dirty_writeback_centisecs # nothing reaches the disk by the way
mkdir /srv/disk && mount -t ext4 /dev/vda /srv/disk || exit
sed -i "s/\"cache_type\": \"Writeback\"/\"cache_type\": \"$cache\"/" mikrom_reconcile/host/drivers/firecracker_config.py
grep -q "\"cache_type\": \"$cache\"" mikrom_reconcile/host/drivers/firecracker_config.py || exit
console=$MIKROM_STATE_DIR/vms/web-000/console.log
ups() { grep -ac 'MIKROM-LINUX up' "$console" 2>/dev/null; }
before=$(ups)
for try in 1 2 3; do mikrom apply "$specs" --yes && break; done
until [ "$(ups)" -gt "${before:-0}" ]; do sleep 0.1; done
grep -a MIKROM-BOOTS "$console" | tail -n 2
echo POWER-CUT
sleep 600
"""
"""It has its own copy of this folder in memory, so that what it changes there is changed for nobody else."""


def boots_at_the_cut(folder: Path, cache: str) -> dict[str, int]:
    """Bring the host up, with the disk that it had before, and its VM; what that counted before its host's end."""
    environment = {
        "cache": cache, "specs": f"{folder}/specs", "MIKROM_DRIVER": "firecracker", "MIKROM_IMAGE_DIRS": str(folder),
        "MIKROM_STATE_DIR": "/srv/disk/state", "MIKROM_RUN_DIR": "/run/mikrom",
    }  # fmt: skip
    words = {"mem_mib": 1536, "nice": 0, "limit_s": 1500, "environment": environment, "disk": folder / "disk"}
    code = f"from pathlib import *; from tests import nested_host; nested_host.run(('sh', '-c', {HOST!r}), **{words})"
    host = subprocess.Popen(
        ("setpriv", "--pdeathsig", "KILL", sys.executable, "-c", code), cwd=nested_host.PROJECT,
        stdout=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    said = ""
    assert host.stdout
    with host:
        for line in host.stdout:  # until nobody has it open any more
            said += line
            sys.stdout.write(line)
            if line.startswith("POWER-CUT"):
                host.kill()  # with it the kernel kills QEMU
    assert "POWER-CUT" in said
    return {name: int(count) for name, count in re.findall(r"MIKROM-BOOTS (\w+) (\d+)", said)}


@pytest.mark.parametrize(("cache", "kept"), [("Writeback", 2), ("Unsafe", 1)])
def test_what_a_guest_has_synced_outlives_a_power_cut_and_would_not_with_firecrackers_default(
    tmp_path: Path, cache: str, kept: int
) -> None:
    guest = built()
    files = {"kernel": guest.vmlinux, "initrd": guest.initrd, "rootfs": make_rootfs(tmp_path / "empty")}
    pinned = {name: pin(Path(shutil.copy(path, tmp_path / name))) for name, path in files.items()}
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/web.yml").write_text(SPECS.format(boot_args=BOOT_ARGS, **pinned))
    make_rootfs(tmp_path / "disk", size_mib=512)
    assert boots_at_the_cut(tmp_path, cache) == {"rootfs": 1, "drive": 1}
    assert boots_at_the_cut(tmp_path, cache) == {"rootfs": kept, "drive": kept}

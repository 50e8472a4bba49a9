"""A Firecracker as somebody starts it by hand: in the folder of its files, with paths that begin there."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.contract.drivers import wait_until
from tests.contract.field_rows import Socket
from tests.e2e.test_demo_guest import GUEST

CONFIG: dict[str, Any] = {
    "boot-source": {"kernel_image_path": "./images/vmlinux", "boot_args": "console=ttyS0 by=hand"},
    "machine-config": {"vcpu_count": 1, "mem_size_mib": 16},
    "drives": [
        {"drive_id": "data", "path_on_host": "existing/data.img", "is_root_device": False, "is_read_only": True},
        {"drive_id": "system", "path_on_host": "existing/root.img", "is_root_device": True, "is_read_only": False},
    ],
}


@contextmanager
def started_by_hand(
    binary: Path | str, folder: Path, config: dict[str, Any] = CONFIG, *options: str
) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """Its API socket, and its process, which is killed at the end. `folder` is where it is started."""
    for name, size in {"images/vmlinux": None, "existing/root.img": 1 << 20, "existing/data.img": 1 << 20}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            shutil.copy(GUEST, path)
        else:
            path.touch()
            with path.open("r+b") as file:
                file.truncate(size)
    (folder / "vm.json").write_text(json.dumps(config))
    socket = folder / "hand.sock"
    socket.unlink(missing_ok=True)
    words = [binary, "--api-sock", str(socket), *(("--config-file", "vm.json") if config else ()), *options]
    with (folder / "console").open("wb") as console:
        process = subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        wait_until(lambda: is_up(socket, process, "Running" if config else "Not started"), "what was started by hand")
        yield socket, process
    finally:
        process.kill()
        process.wait()


def is_up(socket: Path, process: subprocess.Popen[bytes], state: str) -> bool:
    assert process.poll() is None, (socket.parent / "console").read_text()
    with suppress(OSError):
        return bool(Socket(socket).ask("GET", "/")[1]["state"] == state)
    return False

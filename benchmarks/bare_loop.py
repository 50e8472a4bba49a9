"""The least that starts microVMs with some concurrency: spawn Firecracker, three PUTs. Nothing is recorded or proven.

    python benchmarks/bare_loop.py FIRECRACKER KERNEL FOLDER COUNT FORKS

The microVMs are left running. It must not import anything of mikrom.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def start(binary: str, kernel: str, folder: Path, number: int) -> None:
    """One microVM, whose guest runs when this returns."""
    path = str(folder / f"{number}.sock")
    console = os.open(folder / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    output = [(os.POSIX_SPAWN_DUP2, console, 1), (os.POSIX_SPAWN_DUP2, console, 2)]
    argv = (binary, "--id", f"bare-{number}", "--api-sock", path)
    os.posix_spawn(binary, argv, {}, file_actions=output, setsid=True)
    os.close(console)
    with _connected(path) as api:
        _put(api, "/machine-config", {"vcpu_count": 1, "mem_size_mib": 4})
        _put(api, "/boot-source", {"kernel_image_path": kernel, "boot_args": ""})
        _put(api, "/actions", {"action_type": "InstanceStart"})


def _put(api: socket.socket, path: str, content: object) -> None:
    body = json.dumps(content)
    api.sendall(f"PUT {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    answer = api.recv(65536)
    if b" 204 " not in answer:
        raise SystemExit(f"{path}: {answer.decode()}")


def _connected(path: str) -> socket.socket:
    while True:
        api = socket.socket(socket.AF_UNIX)
        try:
            api.connect(path)
        except OSError:  # it does not listen yet
            api.close()
            time.sleep(0.001)
        else:
            return api


def main(binary: str, kernel: str, folder: str, count: str, forks: str) -> None:
    """Start `count` microVMs, `forks` at once."""
    with ThreadPoolExecutor(int(forks)) as pool:
        for _ in pool.map(lambda number: start(binary, kernel, Path(folder), number), range(int(count))):
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])

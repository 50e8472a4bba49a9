"""The files of `deploy/` as they would be installed, with a folder of the test in place of the machine's paths."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from tests.fleet import ROOT

BIN = Path(sys.executable).parent


def adapted(name: str, folder: Path) -> str:
    """The text of a file of `deploy/` for a machine whose root is `folder`."""
    text = (ROOT / "deploy" / name).read_text()
    for fixed, own in (
        ("/opt/mikrom/bin", str(BIN)),
        ("/etc/", f"{folder}/etc/"),
        ("/var/", f"{folder}/var/"),
        ("user=mikrom\n", ""),
    ):
        text = text.replace(fixed, own)
    return text


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port

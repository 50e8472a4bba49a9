"""ImageCache that cannot be had or booted: each stops its own VM with a clear error, the others come up."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mikrom_reconcile.host.resources.images import ImageCache
from tests.command import Mikrom, document, names
from tests.unit.host.test_images import CONTENT, Server

pytestmark = pytest.mark.kvm

HEAD = "apiVersion: mikrom/v1\nkind: Project\nmetadata: {name: demo}\n"
ONE = """\
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: {name}}}
spec: {files}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: {name}}}
spec: {{replicas: 1, template: {{image: {name}, machine: {{mem_size_mib: 16}}}}}}
"""
WITH_SMALL_DISK = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'


class Files:
    """What specs name, in the one folder that images may come from."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.specs = folder / "specs" / "web.yml"
        self.images = folder / "images"
        self.images.mkdir()
        self.server = server
        self.cache = Path(os.environ["MIKROM_STATE_DIR"]) / "images" / "sha256"
        self.good = self.add("good", ImageCache(folder / "built").hello().read_bytes())
        (folder / "secret").write_bytes(CONTENT)
        (self.images / "link").symlink_to("../secret")

    def add(self, name: str, content: bytes) -> dict[str, str]:
        (self.images / name).write_bytes(content)
        return pinned(self.images / name, content)

    def write(self, **images: dict[str, dict[str, str]]) -> None:
        found = (ONE.format(name=name, files=json.dumps(files)) for name, files in images.items())
        self.specs.write_text(HEAD + "".join(found))


def pinned(path: Path, content: bytes) -> dict[str, str]:
    return {"source": f"file://{path}", "sha256": hashlib.sha256(content).hexdigest()}


@pytest.fixture
def files(folder: Path, mikrom: Mikrom, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.setenv("MIKROM_DRIVER", "firecracker")
    monkeypatch.setenv("MIKROM_IMAGE_DIRS", str(folder / "images"))
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "server.pem"))
    server = Server(folder)
    try:
        yield Files(folder, server)
    finally:
        mikrom("destroy", "--yes", code=None)
        server.close()


def errors(ran: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {outcome["vm"]: outcome["error"] for outcome in document("run", ran)["outcomes"] if outcome["error"]}


def test_each_bad_image_stops_its_own_vm_and_the_others_come_up(mikrom: Mikrom, files: Files) -> None:
    files.server.stop_after = 1_000_000
    half = {"source": files.server.url, "sha256": hashlib.sha256(CONTENT).hexdigest()}
    files.write(
        good={"kernel": files.good},
        digest={"kernel": files.good | {"sha256": "0" * 64}},
        half={"kernel": files.good, "rootfs": half},
        climbs={"kernel": pinned(files.images / "../secret", CONTENT)},
        link={"kernel": pinned(files.images / "link", CONTENT)},
        text={"kernel": files.add("text", b"#!/bin/sh\n" * 60)},
        fine={"kernel": files.good},
    )
    told = errors(mikrom("apply", "--yes", "-o", "json", "--timeout", "20", code=2))
    why = {
        "digest-000": "and the spec says 0000",
        "half-000": "it ended after 1000000 of 3145728 bytes",
        "climbs-000": "is not below",
        "link-000": "a symlink is not followed",
        "text-000": "no ELF file",
    }
    assert set(told) == set(why)
    assert {vm: words in told[vm] for vm, words in why.items()} == dict.fromkeys(why, True), told
    running = {vm["name"]: vm["phase"] for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]}
    assert {name: phase for name, phase in running.items() if phase == "running"} == {
        "good-000": "running",
        "fine-000": "running",
    }

    files.server.stop_after = None
    files.write(good={"kernel": files.good}, half={"kernel": files.good, "rootfs": half})
    mikrom("apply", "--yes", "--prune-max", "100%")
    assert files.server.asked == [None, "bytes=1000000-"], "what had come was not sent twice"
    assert names(mikrom) == ["good-000", "half-000"]
    mikrom("destroy", "--yes")
    state = files.cache.parents[1]
    assert [path for name in ("vms", "copies", "disks") for path in (state / name).glob("*")] == []
    assert not list(files.cache.glob("*.part"))


@pytest.mark.needs("unshare", "mount")
def test_a_full_disk_stops_the_vm_that_needs_it_and_no_other(folder: Path, files: Files, mikrom: Mikrom) -> None:
    files.write(good={"kernel": files.good}, large={"kernel": files.good, "rootfs": files.add("large", CONTENT)})
    files.cache.mkdir(parents=True)
    apply = [sys.executable, "-m", "mikrom_reconcile", "apply", "--yes", "-o", "json", "--timeout", "20"]
    words = ["unshare", "-m", "sh", "-c", WITH_SMALL_DISK, str(files.cache), *apply]
    ran = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 2, ran.stderr
    told = errors(ran)
    assert list(told) == ["large-000"]
    assert "MiB and 0 are left in" in told["large-000"]
    listed = document("images", mikrom("images", "-o", "json"))
    assert listed["hosts"][0]["cached"] == [], "the small disk is gone with the run"
    mikrom("images", "--fetch")
    mikrom("apply", "--yes")
    assert names(mikrom) == ["good-000", "large-000"]

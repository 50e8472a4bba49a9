"""ImageCache that cannot be had or booted: each stops its own VM with a clear error, the others come up."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mikrom_reconcile.host.resources.images import ImageCache
from tests.command import Mikrom, document, names
from tests.container_images import Workshop, put
from tests.registries import Server as HTTPServer, send
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


@pytest.fixture
def registry() -> Iterator[str]:
    """One that answers for "lies" with other bytes, never for "slow", and refuses the rest."""
    is_over = threading.Event()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if "/slow/" in request.path:
            is_over.wait(60)
        send(request, b"{}", 200 if "/lies/" in request.path else 403)

    server = HTTPServer(answer)
    yield server.address
    is_over.set()
    server.close()


def layout(folder: Path, *words: str, spoilt: bool = False) -> dict[str, str]:
    workshop = Workshop(folder)
    workshop.folder.mkdir()
    workshop.begin()
    put(workshop.rootfs / "app", b"a static program")  # and no shell
    workshop.commit()
    workshop.configure("--author", folder.name, *words)
    for blob in (workshop.layout / "blobs/sha256").iterdir() if spoilt else ():
        blob.write_bytes(blob.read_bytes().replace(b"sha256", b"sha255").replace(b"\x1f\x8b", b"\x1f\x8c"))
    return {"oci_layout": f"file://{workshop.layout}", "sha256": workshop.digest()}


WHY_NOT = {
    "other": "it is for linux/arm64, and VMs here run linux/amd64",
    "idle": "its image has neither an ENTRYPOINT nor a CMD: write in its template which command it runs",
    "user": "its USER is nobody, which its /etc/passwd does not have",
    "spoilt": "one of them is wrong",
    "digest": "No such file or directory",
    "lies": "and the spec says 4444",
    "locked": "403",
    "slow": "still running past the deadline",
    "gone": "refused",
}


@pytest.mark.needs("umoci", "mke2fs")
@pytest.mark.skipif(os.geteuid() != 0, reason="not root, which unpacking a container image takes")
def test_each_bad_container_image_stops_its_own_vm_and_nothing_is_left(
    mikrom: Mikrom, files: Files, registry: str
) -> None:
    entrypoint = ("--config.entrypoint", "/app")
    rootfs = {
        "good": layout(files.images / "of-good", *entrypoint),
        "other": layout(files.images / "of-other", *entrypoint, "--architecture", "arm64"),
        "idle": layout(files.images / "of-idle"),
        "user": layout(files.images / "of-user", *entrypoint, "--config.user", "nobody"),
        "spoilt": layout(files.images / "of-spoilt", *entrypoint, spoilt=True),
        "digest": {"oci_layout": f"file://{files.images}/of-good/layout", "sha256": "0" * 64},
        "gone": {"oci": f"127.0.0.1:1/app@sha256:{'3' * 64}"},
        "lies": {"oci": f"{registry}/lies/app@sha256:{'4' * 64}"},
        "locked": {"oci": f"{registry}/locked/app@sha256:{'5' * 64}"},
        "slow": {"oci": f"{registry}/slow/app@sha256:{'6' * 64}"},
    }
    files.write(**{name: {"kernel": files.good, "rootfs": disk} for name, disk in rootfs.items()})
    told = {vm.removesuffix("-000"): error for vm, error in errors(apply_all(mikrom)).items()}
    assert {vm: words for vm, words in WHY_NOT.items() if words not in told.get(vm, "")} == {}, told
    assert set(told) == set(WHY_NOT)
    listed = document("vms", mikrom("get", "vms", "-o", "json"))["vms"]
    assert [vm["name"] for vm in listed if vm["phase"] == "running"] == ["good-000"]
    assert re.search(r"good rootfs \(file://.* 1 good-000 ", mikrom("images").stdout)

    files.specs.write_text(files.specs.read_text().replace("{image: idle,", "{image: idle, command: [/app],"))
    mikrom("apply", "--yes", "--limit", "idle")
    mikrom("destroy", "--yes")
    left = {path.name for folder in ("sha256", "parts") for path in files.cache.with_name(folder).iterdir()}
    assert not [name for name in left if name.endswith((".tree", ".new")) or name.count(".") > 1], left


def apply_all(mikrom: Mikrom) -> subprocess.CompletedProcess[str]:
    return mikrom("apply", "--yes", "-o", "json", "--timeout", "8", code=18)


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

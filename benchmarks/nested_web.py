"""From YAML to a served page: examples/web under Firecracker on an emulated host with KVM, its image from a registry.

Emulation is many times slower than hardware: look at the shares of the steps, and at what a step took the last time.

    python -m benchmarks.nested_web FOLDER      what the emulated host runs
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.scratch import scratch
from benchmarks.startup import MIKROM
from tests import nested_host
from tests.conftest import found_firecracker
from tests.registries import docker_registry

WHAT = "examples/web, emulated"
EXAMPLE = Path("examples/web")
REPOSITORY = "examples/web"
PROGRAMS = ("docker-registry", "skopeo", "mke2fs", "nft")
LIMIT_S = 600
LOOK_S = 0.02
_STEP = re.compile(
    r"^step: (.+): ([0-9.]+) s\r?$|^nested: (the emulated host is up) after ([0-9.]+) s\r?$", re.MULTILINE
)


def measure() -> Iterator[Row]:
    """Seconds of each step, and of all of them."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if reason := nested_host.why_not() or (f"not installed: {', '.join(missing)}" if missing else ""):
        yield Row(what=f"{WHAT}: {reason}", ours="not measured")
        return
    with scratch() as folder:
        _prepare(folder)
        inside = [sys.executable, "-m", "benchmarks.nested_web", str(folder), str(found_firecracker())]
        done = subprocess.run(
            [sys.executable, "-m", "tests.nested_host", *inside],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\n{WHAT}: it ended with {done.returncode}")
    for match in _STEP.finditer(done.stdout):
        name, seconds, up, up_s = match.groups()
        yield Row(what=f"{WHAT}: {name or up}", ours=f"{float(seconds or up_s):.1f} s")


def _prepare(folder: Path) -> None:
    """What is there before: the specs, kernel and initrd as files, the image in the folder of a registry."""
    example, images = folder / "web", folder / "images"
    shutil.copytree(EXAMPLE, example)
    subprocess.run([sys.executable, example / "build.py", images], check=True)
    specs = example / "specs/images.yml"
    specs.write_text(
        re.sub(r"oci_layout: .*, sha256: (\w+)", rf'oci: "REGISTRY/{REPOSITORY}@sha256:\1"', specs.read_text())
    )
    with docker_registry(folder) as address:
        words = ("--quiet", "--dest-tls-verify=false", f"oci:{images}/image:1", f"docker://{address}/{REPOSITORY}:1")
        subprocess.run(["skopeo", "copy", *words], check=True)


def main(prepared: Path, firecracker: str) -> None:
    """The steps, on the emulated host."""
    with tempfile.TemporaryDirectory(prefix="mk-") as folder:
        own = Path(folder)
        settings = {
            "STATE_DIR": f"{own}/state", "RUN_DIR": f"{own}/run", "IMAGE_DIRS": f"{prepared}/images",
            "FIRECRACKER": firecracker, "DRIVER": "firecracker", "TIMEOUT": f"{LIMIT_S}",
        }  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MIKROM_")}
        environment = kept | {f"MIKROM_{name}": value for name, value in settings.items()}
        shutil.copytree(prepared / "registry", own / "registry")
        shutil.copytree(prepared / "web/specs", own / "specs")
        began_s = time.monotonic()
        with docker_registry(own) as address:
            _told("a registry serves", began_s)
            specs = own / "specs/images.yml"
            specs.write_text(specs.read_text().replace("REGISTRY", address))
            began_s = time.monotonic()
            ended_s = _applied(own, environment)
            with urllib.request.urlopen("http://127.0.0.1:8080/me", timeout=LIMIT_S) as page:
                print(page.read().decode())
            _told("a page from a published port", ended_s)
            _told("from YAML to page", began_s)


def _applied(own: Path, environment: dict[str, str]) -> float:
    """When `mikrom apply` had converged; the folder of images tells where it was at which moment."""
    images, first_s, tree_s, disk_s, disk = own / "state/images", 0.0, 0.0, 0.0, ""
    began_s = time.monotonic()
    # again where processors were so short that the host did not answer in time
    until_it_converged = 'until "$0" apply "$1" --yes; do sleep 1; done'
    words = ("timeout", str(LIMIT_S), "sh", "-c", until_it_converged, MIKROM, f"{own}/specs")
    process = subprocess.Popen(words, env=environment)
    while process.poll() is None:
        now_s = time.monotonic()
        names = {path.name for path in images.glob("*/*")}
        first_s = first_s or (now_s if names else 0.0)
        for name in names:
            if not tree_s and name.endswith(".tree"):
                tree_s, disk = now_s, name.removesuffix(".part.tree")
        disk_s = disk_s or (now_s if disk in names else 0.0)
        time.sleep(LOOK_S)
    ended_s = time.monotonic()
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    for what, since_s, until_s in (
        ("specs read and planned", began_s, first_s),
        ("kernel unpacked, initrd, layers fetched", first_s, tree_s),
        ("the root disk made", tree_s, disk_s),
        ("three VMs booted, their pages checked", disk_s, ended_s),
    ):
        print(f"step: {what}: {until_s - since_s:.2f} s", flush=True)
    return ended_s


def _told(what: str, began_s: float) -> None:
    print(f"step: {what}: {time.monotonic() - began_s:.2f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Makes what the VMs of this example boot, and `specs/images.yml`, which names it by its digests.

    python build.py FOLDER

The kernel and busybox come from Debian packages, which apt fetches and nothing installs; they stay in a cache. Around
busybox and the files of `image/` a container image is made by hand, as an OCI layout: a tar, and three JSON documents
that name each other by digest. An image of your own comes from a registry instead: see docs/container-images.md.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests import linux_guest
from tests.container_guest import busybox, guest_for_root_disks

HERE = Path(__file__).resolve().parent
APPLETS = ("cat", "echo", "grep", "hostname", "httpd", "sh", "sleep", "sync", "timeout", "wget")
PROCESS = {"Entrypoint": ["/serve"], "Env": ["PATH=/bin"]}
IMAGES = """\
# Written by `run`, which makes these files anew where they are missing.
apiVersion: mikrom/v1
kind: Image
metadata: {{name: web}}
spec:
  kernel: {{source: "{kernel}", sha256: {kernel_sha256}}}
  initrd: {{source: "{initrd}", sha256: {initrd_sha256}}}
  rootfs: {{oci_layout: "{layout}", sha256: {digest}}}
  boot_args: "{boot_args}"
"""


def main(folder: Path) -> None:
    """Fill the folder, and write the specs."""
    folder.mkdir(parents=True, exist_ok=True)
    guest = guest_for_root_disks(folder)
    kernel = Path(shutil.copyfile(guest.kernel, folder / "kernel"))
    digest = make_layout(folder / "image", gzip.compress(root_of(HERE / "image"), mtime=0))
    (HERE / "specs" / "images.yml").write_text(
        IMAGES.format(
            kernel=kernel.as_uri(),
            kernel_sha256=digest_of(kernel.read_bytes()),
            initrd=guest.initrd.as_uri(),
            initrd_sha256=digest_of(guest.initrd.read_bytes()),
            layout=(folder / "image").as_uri(),
            digest=digest,
            boot_args=linux_guest.BOOT_ARGS,
        )
    )


def root_of(files: Path) -> bytes:
    """The only layer, as a tar: the same bytes each time."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        add(tar, "bin/busybox", busybox())
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for path in sorted(path for path in files.rglob("*") if path.is_file()):
            add(tar, str(path.relative_to(files)), path.read_bytes())
    return content.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A program."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o755
    tar.addfile(entry, io.BytesIO(content))


def make_layout(folder: Path, layer: bytes) -> str:
    """An OCI layout of one image; the digest of its manifest, without its algorithm."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "blobs" / "sha256").mkdir(parents=True)

    def blob(kind: str, content: bytes) -> dict[str, Any]:
        (folder / "blobs" / "sha256" / digest_of(content)).write_bytes(content)
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": f"sha256:{digest_of(content)}", "size": len(content)}

    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest_of(gzip.decompress(layer))}"]}
    config = {"architecture": "amd64", "os": "linux", "config": PROCESS, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [blob("layer.v1.tar+gzip", layer)],
    }
    described = blob("manifest.v1+json", json.dumps(manifest).encode())
    tagged = {**described, "annotations": {"org.opencontainers.image.ref.name": "1"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return str(described["digest"]).removeprefix("sha256:")


def digest_of(content: bytes) -> str:
    """As sha256sum prints it."""
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except RuntimeError as error:
        raise SystemExit(f"the image cannot be made: {error}") from error

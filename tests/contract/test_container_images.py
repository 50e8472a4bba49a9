"""Container images of other people's tools, unpacked as those tools unpack them, and made into disks."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.host.oci import rootdisk
from mikrom_reconcile.host.oci.layers import Budget, apply
from mikrom_reconcile.host.oci.manifests import ContainerImage
from mikrom_reconcile.host.oci.sources import Registry, image_of
from mikrom_reconcile.host.oci.tree import Tree
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.system.download import FetchError
from tests.container_images import (
    IMAGES,
    PROGRAMS,
    Workshop,
    a_program,
    digest_in,
    listing,
    no_registry,
    run,
    sparse_in_gnu_format,
    whiteouts,
)

MAX_BYTES = 1 << 30

pytestmark = [
    pytest.mark.needs(*PROGRAMS),
    pytest.mark.skipif(os.geteuid() != 0, reason="not root, which unpacking a container image takes"),
]


def as_it_lies(file: PinnedFile, registry: Registry | None) -> Path:
    assert registry is None
    return Path(file.source.removeprefix("file://"))


def image_in(layout: Path) -> ContainerImage:
    return opened(f"oci-layout:file://{layout}", digest_in(layout))


def opened(source: str, sha256: str) -> ContainerImage:
    return image_of(PinnedFile(source=source, sha256=sha256), as_it_lies, no_registry, max_bytes=MAX_BYTES)


def unpacked(image: ContainerImage, root: Path) -> dict[str, dict[str, Any]]:
    root.mkdir()
    root.chmod(0o755)
    budget = Budget(MAX_BYTES)
    with Tree(root) as tree:
        for layer in image.layers:
            apply(tree, layer, budget)
        tree.finish()
    return listing(root)


def unpacked_by_umoci(layout: Path, bundle: Path) -> dict[str, dict[str, Any]]:
    run("umoci", "unpack", "--image", f"{layout}:it", str(bundle))
    return listing(bundle / "rootfs")


def without_implied_times(
    found: dict[str, dict[str, Any]], but: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Folders that no layer has an entry for have the time at which umoci ran."""
    recent_ns = time.time_ns() - 600 * 10**9
    return {
        name: {**said, "time": 0}
        if name == "." or (but[name]["time"] > recent_ns and said["mode"][2:3] == "4")
        else said
        for name, said in found.items()
    }


@pytest.mark.parametrize("make", IMAGES, ids=lambda make: make.__name__)
def test_a_tree_is_what_umoci_makes_of_the_same_image(make: Callable[[Workshop], None], tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    make(workshop)
    theirs = unpacked_by_umoci(workshop.layout, tmp_path / "theirs")
    ours = unpacked(image_in(workshop.layout), tmp_path / "ours")
    assert list(ours) == list(theirs)
    assert without_implied_times(ours, theirs) == without_implied_times(theirs, theirs)


def test_it_is_the_same_packed_in_other_ways(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    whiteouts(workshop)
    plain = unpacked(image_in(workshop.layout), tmp_path / "plain")
    run("skopeo", "copy", "--dest-compress-format", "zstd", f"oci:{workshop.layout}:it", f"oci:{tmp_path}/zstd:it")
    run("skopeo", "copy", "--dest-decompress", f"oci:{workshop.layout}:it", f"dir:{tmp_path}/dir")
    run("skopeo", "copy", f"oci:{workshop.layout}:it", f"docker-archive:{tmp_path}/saved.tar:it:latest")
    assert unpacked(image_in(tmp_path / "zstd"), tmp_path / "of-zstd") == plain
    assert unpacked(opened(f"docker-archive:file://{tmp_path}/saved.tar", "0" * 64), tmp_path / "of-docker") == plain


@pytest.mark.parametrize("make", [a_program, whiteouts], ids=lambda make: make.__name__)
def test_a_disk_is_the_same_bytes_whenever_it_is_made(make: Callable[[Workshop], None], tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    make(workshop)
    workshop.configure("--config.entrypoint", "/bin/hello")
    image = image_in(workshop.layout)
    disks = []
    for name in ("one", "two"):
        rootdisk.build(image, tmp_path / name, max_bytes=MAX_BYTES, give_up_at=time.monotonic() + 60)
        disks.append((tmp_path / name).read_bytes())
        time.sleep(1.1)  # ext4 counts seconds
    assert disks[0] == disks[1]
    assert subprocess.run(["e2fsck", "-fn", str(tmp_path / "one")], capture_output=True, check=False).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("one", "two"))) == ["one", "two"]


def test_a_sparse_file_in_gnu_format_is_what_gnu_tar_makes_of_it(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    sparse_in_gnu_format(workshop)  # umoci knows no such file
    (tmp_path / "theirs").mkdir()
    run("tar", "-C", str(tmp_path / "theirs"), "-xpf", str(tmp_path / "layer.tar"))
    theirs = listing(tmp_path / "theirs")
    assert unpacked(image_in(workshop.layout), tmp_path / "ours") == theirs
    assert (tmp_path / "ours/holes").stat().st_blocks * 512 < 20_000_000


@pytest.fixture
def program(tmp_path: Path) -> PinnedFile:
    workshop = Workshop(tmp_path / "workshop")
    workshop.folder.mkdir()
    a_program(workshop)
    return PinnedFile(source=f"oci-layout:file://{workshop.layout}", sha256=workshop.digest())


def test_a_host_makes_a_disk_once_and_forgets_its_parts_after_a_day(program: PinnedFile, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "state", folders=(tmp_path,))
    path = cache.fetched(program, give_up_at=time.monotonic() + 60)
    made = path.stat()
    assert made.st_mode & 0o777 == 0o555, "it has an ENTRYPOINT"
    assert cache.fetched(program, give_up_at=time.monotonic() + 60) == path == cache.path_of(program)
    assert path.stat().st_ino == made.st_ino
    assert [digest for digest, *_ in cache.cached()] == [program.sha256]

    parts = tmp_path / "state/images/parts"
    (path.parent / f"{path.name}.part.tree/root").mkdir(parents=True)  # of a process that was killed
    assert len(list(parts.iterdir())) == 3, "manifest, configuration, layer"
    assert not cache.sweep(frozenset({program.sha256}))
    for old in (*parts.iterdir(), *path.parent.iterdir()):
        os.utime(old, (0, 0))
    assert len(cache.sweep(frozenset({program.sha256}))) == 3, "what is used stays, with what it is made in"
    assert not list(parts.iterdir())
    os.utime(path, (0, 0))
    assert path.name in cache.sweep(frozenset())


def test_a_disk_that_was_begun_by_a_process_that_was_killed_is_made_anew(program: PinnedFile, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "state", folders=(tmp_path,))
    path = cache.path_of(program)
    (path.parent / f"{path.name}.part.tree/root/usr").mkdir(parents=True)
    path.with_name(f"{path.name}.part").write_bytes(b"half a disk")
    assert cache.fetched(program, give_up_at=time.monotonic() + 60) == path
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_layout_outside_of_the_folders_for_images_is_refused(program: PinnedFile, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "state", folders=(tmp_path / "elsewhere",))
    with pytest.raises(FetchError, match=r"oci-layout:file://.* is not below .*elsewhere"):
        cache.fetched(program, give_up_at=time.monotonic() + 60)
    assert not any(path.stat().st_size for path in (tmp_path / "state/images/parts").iterdir())

"""Disks on a host: a root disk per image, drives that grow and outlive their VM, nothing half made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Boot, Drive, PinnedFile, RootDisk, VMSpec
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.host.oci import rootdisk
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.disks import Disks
from mikrom_reconcile.system.download import FetchError
from tests.contract.drivers import record_of

MIB = 1 << 20

needs_mke2fs = pytest.mark.needs("mke2fs", "e2fsck")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Eight MiB with one in its midst, as images of file systems are: mostly holes."""
    path = tmp_path / "image"
    with path.open("wb") as out:
        out.truncate(8 * MIB)
        out.seek(3 * MIB)
        out.write(b"x" * MIB)
    return path


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return Disks(tmp_path)


def vm(name: str = "a", digest: str = "1", *, read_only: bool = False, **drives: Drive) -> VMRecord:
    rootfs = RootDisk(source="file:///r", sha256=digest * 64, read_only=read_only)
    boot = Boot(kernel=PinnedFile(source="file:///k", sha256="0" * 64), rootfs=rootfs)
    return replace(record_of(name), spec=VMSpec(image="web", boot=boot, drives=drives))


def files(folder: Path) -> dict[str, int]:
    """Path below the folder to size, of what was made."""
    made = (path for top in ("vms", "drives") for path in (folder / top).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in made}


def test_each_vm_has_a_root_disk_of_its_own_without_the_holes(disks: Disks, image: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        disks.prepare(vm(name), image)
    (root,) = disks.of(vm("a"), image)
    assert (root.name, root.read_only, root.path.read_bytes()) == ("rootfs", False, image.read_bytes())
    assert root.path.stat().st_blocks * 512 <= 2 * MIB
    root.path.write_bytes(b"written by the guest")
    disks.prepare(vm("a"), image)
    assert root.path.read_bytes() == b"written by the guest"
    (other,) = disks.of(vm("b"), image)
    assert other.path.read_bytes() == image.read_bytes()
    assert len(files(tmp_path)) == 2


def test_another_image_makes_the_root_disk_anew_and_leaves_the_drives(
    disks: Disks, image: Path, tmp_path: Path
) -> None:
    first = vm(data=Drive(size_mib=1))
    disks.prepare(first, image)
    root, data = disks.of(first, image)
    root.path.write_bytes(b"old")
    data.path.write_bytes(b"kept".ljust(MIB))
    second = vm(digest="2", data=Drive(size_mib=1))
    disks.prepare(second, image)
    assert not root.path.exists()
    assert disks.of(second, image)[0].path.read_bytes() == image.read_bytes()
    assert data.path.read_bytes().startswith(b"kept")


def test_what_a_killed_copy_left_is_no_disk(disks: Disks, image: Path, tmp_path: Path) -> None:
    (root,) = disks.of(vm(), image)
    root.path.parent.mkdir(parents=True)
    root.path.with_name(f"{root.path.name}.new").write_bytes(b"half")
    disks.prepare(vm(), image)
    assert files(tmp_path) == {str(root.path.relative_to(tmp_path)): 8 * MIB}


def test_a_read_only_root_disk_is_the_image_itself(disks: Disks, image: Path, tmp_path: Path) -> None:
    disks.prepare(vm(read_only=True), image)
    (root,) = disks.of(vm(read_only=True), image)
    assert (root.path, root.read_only) == (image, True)
    assert files(tmp_path) == {}


def test_drives_come_in_the_order_of_their_names_and_grow_with_what_is_in_them(disks: Disks, tmp_path: Path) -> None:
    small = replace(
        record_of("a"), spec=VMSpec(image="hello", drives={"z": Drive(size_mib=1), "data": Drive(size_mib=1)})
    )
    disks.prepare(small, None)
    data, z = disks.of(small, None)
    assert (data.name, z.name) == ("data", "z")
    data.path.write_bytes(b"kept".ljust(MIB))
    large = replace(small, spec=VMSpec(image="hello", drives={"data": Drive(size_mib=3)}))
    disks.prepare(large, None)
    assert data.path.stat().st_size == 3 * MIB
    assert data.path.read_bytes()[:MIB] == b"kept".ljust(MIB)
    with pytest.raises(PermanentError, match="drive data has 3 MiB and never shrinks: write size_mib: 3"):
        disks.prepare(small, None)


def mounted(size_mib: int = 16) -> VMRecord:
    return replace(record_of("a"), spec=VMSpec(image="web", drives={"data": Drive(size_mib=size_mib, mount="/data")}))


def test_an_existing_file_is_a_drive_as_it_is_and_stays(disks: Disks, tmp_path: Path) -> None:
    path = tmp_path / "existing/data.img"
    record = vm(data=Drive(source=f"file://{path}", read_only=True))
    with pytest.raises(FetchError, match="data\\.img: No such file"):
        disks.prepare(record, None)
    path.parent.mkdir()
    path.symlink_to("/etc/passwd")
    with pytest.raises(FetchError, match="a symlink is not followed"):
        disks.prepare(record, None)
    path.unlink()
    path.write_bytes(b"mine")
    assert [(disk.path, disk.read_only) for disk in disks.prepare(record, None)] == [(path, True)]
    disks.remove(record)
    assert path.read_bytes() == b"mine"
    elsewhere = vm(data=Drive(source="file:///etc/shadow"))
    with pytest.raises(FetchError, match=r"/etc/shadow is not below .*: MIKROM_DRIVE_DIRS says where"):
        disks.prepare(elsewhere, None)


@needs_mke2fs
@pytest.mark.parametrize("before", ["nothing", "holes", "a draft of a process that was killed"])
def test_a_new_drive_that_is_to_be_mounted_is_formatted_once(disks: Disks, tmp_path: Path, before: str) -> None:
    (data,) = disks.of(mounted(), None)
    data.path.parent.mkdir(parents=True)
    if before != "nothing":
        path = data.path if before == "holes" else data.path.with_name("data.img.new")
        with path.open("wb") as out:
            out.truncate(4 * MIB)
    disks.prepare(mounted(), None)
    assert files(tmp_path) == {"drives/default/a/data.img": 16 * MIB}
    assert subprocess.run(["e2fsck", "-fn", str(data.path)], capture_output=True, check=False).returncode == 0
    assert data.path.stat().st_blocks * 512 < 6 * MIB, "a journal, and holes"
    before_growth = data.path.read_bytes()
    disks.prepare(mounted(64), None)
    assert (data.path.stat().st_size, data.path.read_bytes()[: 16 * MIB]) == (64 * MIB, before_growth)
    data.path.with_name("data.img.new").write_bytes(b"of a process that was killed")
    disks.remove(mounted(64))
    assert [path.name for path in data.path.parent.iterdir()] == ["data.img"]


def test_what_is_in_a_drive_is_never_formatted(disks: Disks, tmp_path: Path) -> None:
    (data,) = disks.of(mounted(1), None)
    data.path.parent.mkdir(parents=True)
    data.path.write_bytes(b"a file system of another kind".ljust(MIB))
    for _ in range(2):
        with pytest.raises(
            PermanentError, match="drive data has something else than an ext4 file system, and is not f"
        ):
            disks.prepare(mounted(1), None)
    assert data.path.read_bytes().startswith(b"a file system")


def test_a_host_without_mke2fs_says_so_and_leaves_no_drive(
    disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootdisk, "_SEARCHED", str(tmp_path))
    with pytest.raises(FetchError, match="mke2fs, which makes ext4 file systems, is not installed here"):
        disks.prepare(mounted(), None)
    assert files(tmp_path) == {}


def test_a_root_disk_is_as_large_as_its_spec_says_grows_and_never_shrinks(disks: Disks, image: Path) -> None:
    def sized(size_mib: int) -> VMRecord:
        record = vm()
        assert record.spec.boot
        assert record.spec.boot.rootfs
        boot = replace(record.spec.boot, rootfs=replace(record.spec.boot.rootfs, size_mib=size_mib))
        return replace(record, spec=replace(record.spec, boot=boot))

    (root,) = disks.of(vm(), image)
    with pytest.raises(PermanentError, match=r"its root disk has 8 MiB and never shrinks: write size_mib: 8 \("):
        disks.prepare(sized(7), image)
    assert not root.path.exists()
    for size_mib in (4096, 8192):
        disks.prepare(sized(size_mib), image)
        assert root.path.stat().st_size == size_mib * MIB
        assert root.path.stat().st_blocks * 512 <= 2 * MIB
    with pytest.raises(PermanentError, match="its root disk has 8192 MiB and never shrinks"):
        disks.prepare(sized(4096), image)


def test_a_delete_takes_the_root_disk_and_retains_drives_unless_told_otherwise(
    disks: Disks, image: Path, tmp_path: Path
) -> None:
    record = vm(kept=Drive(size_mib=1), gone=Drive(size_mib=1, on_delete="delete"))
    disks.prepare(record, image)
    disks.remove(record)
    disks.remove(record)
    assert files(tmp_path) == {"drives/default/a/kept.img": MIB}
    again = vm(kept=Drive(size_mib=1))
    disks.prepare(again, image)
    assert disks.of(again, image)[1].path == tmp_path / "drives/default/a/kept.img"
    elsewhere = replace(again, project="other")
    assert disks.of(elsewhere, image)[1].path != disks.of(again, image)[1].path


def test_a_host_without_room_says_so_and_makes_nothing(
    disks: Disks, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 100, 100, 300, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(TemporaryError, match=rf"its disks need 65 MiB more and 1 are left in {tmp_path}; free some"):
        disks.prepare(vm(data=Drive(size_mib=64)), image)
    assert files(tmp_path) == {}


def test_a_link_in_the_place_of_a_drive_is_not_followed(disks: Disks, tmp_path: Path) -> None:
    record = replace(record_of("a"), spec=VMSpec(image="hello", drives={"data": Drive(size_mib=1)}))
    (data,) = disks.of(record, None)
    data.path.parent.mkdir(parents=True)
    data.path.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        disks.prepare(record, None)
    assert not (tmp_path / "victim").exists()

"""The disks of VMs on this host: a root disk of a VM's own, copied from its image, and drives that outlive it. A root
disk has the digest of its image in its name, so that one of another image is never booted by mistake. Drives lie apart,
under their project's and VM's name: a VM that is made again finds those that were retained, no other can.
"""

import errno
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.desired import DriveRateLimiter
from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.system import files
from mikrom_reconcile.system.download import local_file
from mikrom_reconcile.system.files import descriptor, make_folder, sync_folder
from mikrom_reconcile.times_and_sizes import IMAGES

ROOT_ID = "rootfs"  # the root disk's name beside the drives'

_MIB = 1 << 20
_EXT4_MAGIC_AT, _EXT4_MAGIC = 0x438, b"\x53\xef"


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """One disk as a VMM opens it."""

    name: str
    path: Path
    read_only: bool
    rate_limiter: DriveRateLimiter = DriveRateLimiter()
    is_root: bool = False


class Disks:
    """The disks below one state folder; existing files may be in `folders`. The caller holds the VM's action lock."""

    def __init__(self, state_dir: Path, folders: tuple[Path, ...] = ()) -> None:
        self._state_dir = state_dir
        self._folders = folders or (state_dir / "existing",)

    def of(self, record: VMRecord, rootfs_image: Path | None) -> tuple[Disk, ...]:
        """All disks of the VM, the root disk first, whether they are there or not."""
        return tuple(disk for disk, _ in self._sized(record, rootfs_image))

    def prepare(self, record: VMRecord, rootfs_image: Path | None, *, give_up_at: float = math.inf) -> tuple[Disk, ...]:
        """The VM's disks: make missing ones, grow those that are too small, and remove root disks of other images.
        Raises TemporaryError when the disk of this host is too full, PermanentError where a disk would shrink or has no
        file system to mount, FetchError where none can be made or found.
        """
        sized, drives = list(self._sized(record, rootfs_image)), list(self._sized(record, None))
        for disk, size in drives:
            if size is None:
                self.source_of(disk.path)
        own_root = next((disk.path for disk, _ in sized if disk.name == ROOT_ID and not disk.read_only), None)
        self._remove_roots(record.home, but=own_root)
        image = rootfs_image if own_root is not None and not own_root.exists() else None
        lacking = [(disk, size) for disk, size in sized if size is not None and _lacks(disk, size, image)]
        blank = [(disk, size) for disk, size in drives if size is not None and _wants_format(record, disk)]
        need = sum(size - _size_of(disk.path) for disk, size in lacking)
        if need or image:
            self._check_room(need + (image.stat().st_blocks * 512 if image else 0))
        if image is not None and own_root is not None:
            make_folder(own_root.parent)
            with _drafted(own_root) as draft, descriptor(image, os.O_RDONLY) as source, _writable(draft) as copy:
                _copy_sparsely(source, copy)
                files.sync(copy)
        for disk, size in lacking:
            make_folder(disk.path.parent)
            if (disk, size) not in blank:
                _grow(disk.path, size)
        for disk, size in blank:
            _format(disk.path, size, give_up_at)
        return tuple(disk for disk, _ in sized)

    def source_of(self, path: Path) -> str:
        """An existing file as specs name it: it is there, and no link to something else. Raises FetchError."""
        with local_file(str(path), self._folders, "MIKROM_DRIVE_DIRS"):
            return f"file://{path}"

    def remove(self, record: VMRecord) -> None:
        """Remove the root disk, and the drives that are not retained."""
        self._remove_roots(record.home, but=None)
        for disk, size in self._sized(record, None):
            if size is None:  # somebody's file
                continue
            disk.path.with_name(f"{disk.path.name}.new").unlink(missing_ok=True)
            if record.spec.drives[disk.name].on_delete == "delete":
                disk.path.unlink(missing_ok=True)
        folder = self._drive_folder(record)
        for empty in (folder, folder.parent):
            with suppress(OSError):  # not there, or drives are retained in it
                empty.rmdir()

    def _sized(self, record: VMRecord, image: Path | None) -> Iterator[tuple[Disk, int | None]]:
        """Each disk with the bytes that its spec wants, None for an existing file and a root disk as its `image` is:
        the root disk, then drives, a root device first, then by name, as in the guest.
        """
        rootfs = record.spec.boot and record.spec.boot.rootfs
        if rootfs and image is not None:
            own = self._state_dir / "vms" / record.home / f"root-{rootfs.sha256[:16]}.img"
            path = image if rootfs.read_only else own
            disk = Disk(name=ROOT_ID, path=path, read_only=rootfs.read_only, is_root=True)
            yield disk, rootfs.size_mib and rootfs.size_mib * _MIB
        for name, drive in sorted(record.spec.drives.items(), key=lambda it: (not it[1].is_root_device, it[0])):
            own = self._drive_folder(record) / f"{name}.img"
            path = own if drive.source is None else Path(drive.source.removeprefix("file://"))
            flags = {"read_only": drive.read_only, "is_root": drive.is_root_device}
            disk = Disk(name=name, path=path, rate_limiter=drive.rate_limiter, **flags)
            yield disk, drive.size_mib and drive.size_mib * _MIB

    def _drive_folder(self, record: VMRecord) -> Path:
        return self._state_dir / "drives" / record.project / record.home

    def _check_room(self, need: int) -> None:
        disk = os.statvfs(self._state_dir)
        left = disk.f_bavail * disk.f_frsize
        if need > left:
            message = f"its disks need {-(-need // _MIB)} MiB more and {left // _MIB} are left in {self._state_dir}"
            raise TemporaryError(f"{message}; free some, or make them smaller")

    def _remove_roots(self, home: str, *, but: Path | None) -> None:
        folder = self._state_dir / "vms" / home
        with suppress(FileNotFoundError):  # nothing was ever made for it
            for name in os.listdir(folder):  # noqa: PTH208 - for every start, and a glob takes six times as long
                if name.startswith("root-") and folder / name != but:
                    (folder / name).unlink(missing_ok=True)


def _lacks(disk: Disk, size: int, image: Path | None) -> bool:
    is_root = disk.name == ROOT_ID
    have = _size_of(image) if is_root and image is not None else _size_of(disk.path)
    if have > size:
        what, way_out = ("its root disk", "") if is_root else (f"drive {disk.name}", ", or give it another name")
        message = f"{what} has {have // _MIB} MiB and never shrinks: write size_mib: {have // _MIB}{way_out}"
        raise PermanentError(f"{message} ({disk.path})")
    return have < size


def _wants_format(record: VMRecord, disk: Disk) -> bool:
    """Whether a drive that is to be mounted is new; nothing in it is known to be lost then."""
    if record.spec.drives[disk.name].mount is None:
        return False
    try:
        with descriptor(disk.path, os.O_RDONLY) as fd:
            if os.pread(fd, 2, _EXT4_MAGIC_AT) == _EXT4_MAGIC:
                return False
            os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENXIO}:  # not there, or nothing but a hole
            raise
        return True
    message = f"drive {disk.name} has something else than an ext4 file system, and is not formatted: leave mount out"
    raise PermanentError(f"{message}, or give it another name ({disk.path})")


def _size_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _writable(path: Path) -> AbstractContextManager[int]:
    return descriptor(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)


def _grow(path: Path, size: int) -> None:
    with _writable(path) as fd:
        os.ftruncate(fd, size)
        files.sync(fd)


def _format(path: Path, size: int, give_up_at: float) -> None:
    """An empty file system in place of a file with nothing in it."""
    from mikrom_reconcile.host.oci.rootdisk import format_empty  # noqa: PLC0415 - what few VMs need

    with _drafted(path) as draft:
        _grow(draft, size)
        format_empty(draft, give_up_at=give_up_at)


@contextmanager
def _drafted(path: Path) -> Iterator[Path]:
    """A file that takes the place of `path` once the block has made it, or is gone."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)  # of a process that was killed
    try:
        yield draft
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    draft.replace(path)
    sync_folder(path.parent)


def _copy_sparsely(source: int, target: int) -> None:
    """Leave holes out, and share blocks where the file system can: the kernel clones before it copies."""
    size, at = os.fstat(source).st_size, 0
    os.ftruncate(target, size)
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole is left
                raise
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            at += os.copy_file_range(source, target, min(IMAGES.copied_piece_bytes, end - at), at, at)
            time.sleep(0)  # lets other greenlets run

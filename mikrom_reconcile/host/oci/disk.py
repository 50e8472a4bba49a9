"""ext4 file systems, by mke2fs: an empty one of a drive, or one of a tree, and of the same tree the same bytes. mke2fs
copies a folder in the order of names. What it takes from its surroundings is given to it: identities, its clock, no
configuration of this machine; but for the times at which the tree was made here, which are replaced afterwards.
Checksums of metadata are left out, so that this can be done without knowing them.
"""

import os
import struct
import subprocess
import time
from pathlib import Path

from mikrom_reconcile.system import files
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

_BLOCK = 4096
_MIB = 1 << 20
_INODE_SIZE = 256
_PATH = f"{os.defpath}:/usr/sbin:/sbin"
_UUID = "6d696b72-6f6d-4000-8000-6f63690000{:02x}"
_FEATURES = (
    *("has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg"),
    *("sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize"),
)
_METADATA_BYTES = 16 * _MIB
"""A journal, the tables of groups and room to resize: what a small disk has beside its inodes and files."""


def make(tree: Path, disk: Path, *, inodes: int, content_bytes: int, give_up_at: float) -> None:
    """Make `disk` of the tree, a fifth larger than it needs to be. Raises FetchError, and OSError without room."""
    inodes += int(inodes * CONTAINER_IMAGES.spare_share) + CONTAINER_IMAGES.spare_inodes
    need = content_bytes + content_bytes // 256 + inodes * _INODE_SIZE + _METADATA_BYTES  # 1/256: extents, bitmaps
    with disk.open("xb") as image:
        image.truncate(-(-int(need * (1 + CONTAINER_IMAGES.spare_share)) // _MIB) * _MIB)
    more = ("-I", str(_INODE_SIZE), "-N", str(inodes), "-U", _UUID.format(1), "-d", str(tree))
    _mke2fs(disk, _FEATURES, f"hash_seed={_UUID.format(2)},", more, give_up_at)
    with disk.open("r+b") as image:
        _settle_times(image.fileno())
        files.sync(image.fileno())


def format_empty(disk: Path, *, give_up_at: float) -> None:
    """Make an empty file system on a file that has its size. Raises FetchError."""
    _mke2fs(disk, (*_FEATURES, "metadata_csum"), "", (), give_up_at)


def _mke2fs(disk: Path, features: tuple[str, ...], option: str, more: tuple[str, ...], give_up_at: float) -> None:
    command = [
        *("mke2fs", "-q", "-F", "-b", str(_BLOCK), "-m", "0", "-O", ",".join(("none", *features))),
        *("-E", f"{option}root_owner=0:0,lazy_itable_init=0,nodiscard", *more, str(disk)),
    ]
    environment = {
        "PATH": _PATH,
        "LC_ALL": "C",
        "MKE2FS_CONFIG": "/dev/null",
        "E2FSPROGS_FAKE_TIME": "1",
        "SOURCE_DATE_EPOCH": "1",  # the latter from e2fsprogs 1.47.1 on
    }
    left_s = min(CONTAINER_IMAGES.mkfs_s, max(0.1, give_up_at - time.monotonic()))
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=left_s, check=False)
    except FileNotFoundError as error:
        raise FetchError("mke2fs, which makes ext4 file systems, is not installed here: install e2fsprogs") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError("no more time while mke2fs made its file system", lasting=False) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        full = any("No space left" in line for line in said)
        raise FetchError(f"mke2fs failed: {said[-1] if said else done.returncode}", lasting=not full)


def _settle_times(disk: int) -> None:
    """Give each inode one time: that of its content, to the second."""
    superblock = os.pread(disk, 1024, 1024)
    (inodes,), (per_group,) = struct.unpack_from("<I", superblock, 0), struct.unpack_from("<I", superblock, 0x28)
    (descriptor_size,) = struct.unpack_from("<H", superblock, 0xFE)
    for group in range(inodes // per_group):
        descriptor = os.pread(disk, descriptor_size, _BLOCK + group * descriptor_size)
        (low,), (high,) = struct.unpack_from("<I", descriptor, 0x08), struct.unpack_from("<I", descriptor, 0x28)
        at = (high << 32 | low) * _BLOCK
        table = bytearray(os.pread(disk, per_group * _INODE_SIZE, at))
        if table.count(0) == len(table):
            continue
        for inode in range(0, len(table), _INODE_SIZE):
            _settle(table, inode)
        os.pwrite(disk, table, at)
        time.sleep(0)  # lets other greenlets run


def _settle(table: bytearray, at: int) -> None:
    """Set atime, ctime, mtime and crtime; two bits beside each say whether it is past 2038."""
    seconds = table[at + 0x10 : at + 0x14]
    later = struct.pack("<I", table[at + 0x88] & 3)
    for place in (0x08, 0x0C, 0x90):
        table[at + place : at + place + 4] = seconds
    for place in (0x84, 0x88, 0x8C, 0x94):
        table[at + place : at + place + 4] = later

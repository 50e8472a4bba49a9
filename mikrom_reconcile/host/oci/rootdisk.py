"""A root disk of a container image: its layers in a tree, an init beside them, and an ext4 file system of it all."""

import hashlib
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from mikrom_reconcile.host.oci.layers import Budget, apply
from mikrom_reconcile.host.oci.manifests import ContainerImage, Process
from mikrom_reconcile.host.oci.tree import Tree
from mikrom_reconcile.system import files
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

_BLOCK = 4096
_MIB = 1 << 20
_INODE_SIZE = 256
_SEARCHED = f"{os.defpath}:/usr/sbin:/sbin"
_UUID = "6d696b72-6f6d-4000-8000-6f63690000{:02x}"
_FEATURES = (
    *("has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg"),
    *("sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize"),
)
_METADATA_BYTES = 16 * _MIB
"""A journal, the tables of groups and room to resize: what a small disk has beside its inodes and files."""


def make_disk(tree: Path, disk: Path, *, inodes: int, content_bytes: int, give_up_at: float) -> None:
    """Make `disk` of the tree, a fifth larger than it needs to be. Raises FetchError, and OSError without room. Of the
    same tree it has the same bytes: mke2fs copies a folder in the order of names, and what it takes from its
    surroundings is given to it (identities, its clock, no configuration of this machine), but for the times at which
    the tree was made here. Those are replaced afterwards; checksums of metadata, which would have to be known for that,
    are left out.
    """
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
        "PATH": _SEARCHED,
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


FILE = (b".mikrom", b"run")
INIT = (b".mikrom", b"init")

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAST_ID = (1 << 32) - 2


def run_file(process: Process, tree: Tree) -> bytes:
    """What the init is told to run, which `guest/init.c` reads: the image's own words, with its USER looked up in its
    own files, each with a zero byte behind it. Raises FetchError.
    """
    lines = [*_lines(process, tree)]
    for line in lines:
        if "\0" in line:
            raise FetchError(f"it has a zero byte in {line[:40]!r}")
    content = b"".join(line.encode("utf-8", "surrogateescape") + b"\0" for line in lines)
    if len(content) > CONTAINER_IMAGES.run_file_bytes or len(lines) > CONTAINER_IMAGES.run_file_lines:
        raise FetchError("its ENTRYPOINT, CMD and ENV are longer than a kernel takes")
    return content


def _lines(process: Process, tree: Tree) -> Iterator[str]:
    user, home = _user(process.user or "", tree)
    env = list(process.env or ())
    names = {line.partition("=")[0] for line in env}
    env += [line for line in (_PATH, f"HOME={home}") if line.partition("=")[0] not in names]
    yield from (f"arg={word}" for word in process.words)
    yield from (f"env={line}" for line in env)
    yield f"dir={process.working_dir or '/'}"
    yield from user
    yield f"stop={_signal(process.stop_signal or 'SIGTERM')}"


def _user(text: str, tree: Tree) -> tuple[list[str], str]:
    """Lines that say who runs it, and that user's home. Like Docker: a name has to be there, a number need not."""
    name, _, group = text.partition(":")
    name = name or "0"
    users = list(_accounts(tree, b"passwd", 7))
    groups = list(_accounts(tree, b"group", 4))
    account = next((line for line in users if name in line[:3:2]), None)
    if account is None and not _is_id(name):
        raise FetchError(f"its USER is {name}, which its /etc/passwd does not have")
    uid, gid, home = (account[2], account[3], account[5]) if account else (name, "0", "/")
    more = [line[2] for line in groups if account and not group and account[0] in line[3].split(",")]
    if group:
        gid = next((line[2] for line in groups if group in line[:3:2]), group if _is_id(group) else "")
        if not gid:
            raise FetchError(f"its USER is {text}, and its /etc/group does not have {group}")
    return [f"uid={uid}", f"gid={gid}", *(f"group={one}" for one in more)], home or "/"


def _accounts(tree: Tree, name: bytes, fields: int) -> Iterator[list[str]]:
    """The lines of an account file that are whole."""
    content = tree.read((b"etc", name), CONTAINER_IMAGES.accounts_bytes)
    for line in content.decode("utf-8", "surrogateescape").splitlines():
        found = line.split(":")
        if len(found) == fields and _is_id(found[2]) and (fields == 4 or _is_id(found[3])):
            yield found


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,10}", text) is not None and int(text) <= _LAST_ID


def _signal(text: str) -> int:
    """The number of a signal by its name, with SIG or without, or by its number."""
    found = re.fullmatch(r"(?:SIG)?(?:([0-9]{1,3})|([A-Z0-9]+)|(RTMIN|RTMAX)([+-][0-9]{1,2}))", text.upper())
    digits, name, edge, step = found.groups() if found else ("0", None, None, None)
    number = int(digits or 0) or int(getattr(signal, f"SIG{name or edge}", 0)) + int(step or 0)
    if not 1 <= number <= signal.SIGRTMAX:
        raise FetchError(f"its STOPSIGNAL {text} is no signal")
    return number


_FORMAT = b"2"  # to be raised with each change of what is made of the same image
_MOUNT_POINTS = (b"dev", b"proc", b"sys", b"etc")


def build(image: ContainerImage, draft: Path, *, max_bytes: int, give_up_at: float) -> None:
    """Make the file `draft`, which is not there yet; on failure nothing is left. Raises FetchError and OSError."""
    if os.geteuid() != 0:
        raise FetchError("a container image can only be unpacked by root, for its files' owners")
    tree = draft.with_name(f"{draft.name}.tree")
    try:
        shutil.rmtree(tree, ignore_errors=True)  # of a process that was killed
        files.make_folder(tree / "root")
        (tree / "root").chmod(0o755)
        inodes, content_bytes = unpack(image, tree / "root", Budget(max_bytes, give_up_at))
        make_disk(tree / "root", draft, inodes=inodes, content_bytes=content_bytes, give_up_at=give_up_at)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def unpack(image: ContainerImage, root: Path, budget: Budget) -> tuple[int, int]:
    """Unpack it into `root`, an empty folder, with what it needs to boot; the number of inodes, and of bytes."""
    with Tree(root) as tree:
        for number, layer in enumerate(image.layers, 1):
            try:
                apply(tree, layer, budget)
            except FetchError as error:
                raise FetchError(f"layer {number} of {len(image.layers)}: {error}", lasting=error.lasting) from error
        started = run_file(image.process, tree)
        tree.drop(INIT[0])
        tree.put(INIT, init_program(), 0o755)
        tree.put(FILE, started, 0o600)
        for name in _MOUNT_POINTS:
            tree.make_folder(name)
        return tree.finish()


@cache
def recipe() -> str:
    """What a disk depends on besides its image, as a few digits: another release may make another disk."""
    return hashlib.blake2b(init_program() + _FORMAT, digest_size=4).hexdigest()


@cache
def init_program() -> bytes:
    """The program that begins a VM of a container image."""
    return (resources.files("mikrom_reconcile") / "guest" / "init.elf").read_bytes()

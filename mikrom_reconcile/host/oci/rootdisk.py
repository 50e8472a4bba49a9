"""A root disk of a container image: its layers in a tree, an init beside them, and an ext4 file system of it all."""

import hashlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from mikrom_reconcile.host.oci import disk
from mikrom_reconcile.host.oci.layers import Budget, apply
from mikrom_reconcile.host.oci.manifests import ContainerImage, Process
from mikrom_reconcile.host.oci.tree import Tree
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

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
        (tree / "root").mkdir(parents=True)
        tree.chmod(0o700)
        (tree / "root").chmod(0o755)
        inodes, content_bytes = unpack(image, tree / "root", Budget(max_bytes, give_up_at))
        disk.make(tree / "root", draft, inodes=inodes, content_bytes=content_bytes, give_up_at=give_up_at)
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

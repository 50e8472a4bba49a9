"""A root disk of a container image: its layers in a tree, an init beside them, and an ext4 file system of it all."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import cache
from importlib import resources
from pathlib import Path

from mikrom_reconcile.host.oci import disk
from mikrom_reconcile.host.oci.layers import apply
from mikrom_reconcile.host.oci.manifests import ContainerImage
from mikrom_reconcile.host.oci.runfile import FILE, INIT, run_file
from mikrom_reconcile.host.oci.tars import Budget
from mikrom_reconcile.host.oci.tree import Tree
from mikrom_reconcile.system.download import FetchError

_FORMAT = b"2"
"""To be raised with each change of what is made of the same image."""
_MOUNT_POINTS = (b"dev", b"proc", b"sys", b"etc")


def build(image: ContainerImage, draft: Path, *, max_bytes: int, give_up_at: float) -> None:
    """Make the file `draft`, which is not there yet; on failure nothing is left. Raises FetchError and OSError."""
    if os.geteuid() != 0:
        raise FetchError("a container image can only be unpacked by root, for its files' owners", lasting=True)
    tree = draft.with_name(f"{draft.name}.tree")
    try:
        shutil.rmtree(tree, ignore_errors=True)  # of a process that was killed
        (tree / "root").mkdir(parents=True)
        tree.chmod(0o700)
        (tree / "root").chmod(0o755)
        inodes, content_bytes = unpack(image, tree / "root", Budget(max_bytes, give_up_at))
        disk.make(
            tree / "root",
            draft,
            inodes=inodes,
            content_bytes=content_bytes,
            give_up_at=give_up_at,
        )
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

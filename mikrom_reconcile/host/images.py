"""Where the images that specs name lie on this host. So far there is one, built in: the demo guest.

It is copied out of the package once, under a name that says its content: a running VM never depends on a path
inside an environment that the next release replaces.
"""

from __future__ import annotations

import secrets
from functools import cache
from hashlib import blake2b
from importlib import resources
from pathlib import Path

from mikrom_reconcile.folders import make_folder
from mikrom_reconcile.host.files import write_whole

HELLO = "hello"
"""Prints its boot arguments and waits for Ctrl-Alt-Del."""

LEAST_MEM_SIZE_MIB = 2
"""The demo guest is linked at 1 MiB."""


def kernel_of_hello(folder: Path) -> Path:
    """The demo guest's kernel in `folder`, put there if it is missing or not whole. Raises OSError."""
    content, name = _hello()
    path = folder / name
    try:
        if path.stat().st_size == len(content):  # a power cut may have left an empty file
            return path
    except FileNotFoundError:
        make_folder(folder)
    draft = folder / f"{name}.{secrets.token_hex(4)}"  # many starts may find it missing at once
    write_whole(draft, content, durable=False)
    draft.replace(path)
    return path


@cache
def _hello() -> tuple[bytes, str]:
    content = (resources.files("mikrom_reconcile") / "guest" / "hello.elf").read_bytes()
    return content, f"hello-{blake2b(content, digest_size=6).hexdigest()}.elf"

"""Which files of a source are read, by their paths, and which of the others look as if they should be.

Files of variables are those that Ansible reads: `group_vars/NAME` with a suffix or without, and those in a folder
`group_vars/NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

VARS_FOLDERS = {"group_vars": "GroupVars", "host_vars": "HostVars"}
"""Ansible's folders, and the kind of what is in them."""

SUFFIXES = (".yml", ".yaml")
_OF_VARIABLES = (*SUFFIXES, ".json")
_PROSE = (".md", ".rst", ".txt", "~")

_LOOKS_LIKE_ONE = re.compile(
    rb"\A(?:\xef\xbb\xbf)?(?:[ \t]*(?:#[^\n]*|---[^\n]*)?\r?\n)*[ \t{]*(?:\r?\n)?[ \t]*"
    rb"[\"']?(?:apiVersion|kind|metadata|spec)[\"']?[ \t]*:"
)

NOT_READ = "this looks like a spec, and files of that name are not read"
NOT_READ_HINT = "end its name with .yml, or begin it with a dot to leave it out"


def variables_of(path: str) -> tuple[str, str, str]:
    """Of a file of variables the kind, the name of the group or host, and the path below its folder if it has one."""
    steps = path.split("/")
    at = next((number for number in range(len(steps) - 2, -1, -1) if steps[number] in VARS_FOLDERS), None)
    if at is None:
        return "", "", ""
    name, below = steps[at + 1], "/".join(steps[at + 2 :])
    suffix = next((suffix for suffix in _OF_VARIABLES if not below and name.lower().endswith(suffix)), "")
    return VARS_FOLDERS[steps[at]], name[: len(name) - len(suffix)], below


def sorted_out(paths: Iterable[str]) -> Iterator[tuple[str, Literal["read", "refuse", "look"]]]:
    """What to do about each file that is not hidden: read it, refuse it, or look whether it `looks_like_a_spec`.

    What is missing is left alone: texts for people beside variables, and copies beside the file that they are of.
    """
    paths = sorted(paths)
    read = {path for path in paths if path.lower().endswith(SUFFIXES)}
    for path in paths:
        kind, _, below = ("", "", "") if path in read else variables_of(path)
        if path in read or (kind and path.lower().endswith(_OF_VARIABLES)):
            yield path, "read"
        elif _is_copy(path, read) or (kind and path.lower().endswith(_PROSE)):
            continue
        elif kind:
            yield path, "refuse" if "." in below.rpartition("/")[2] else "read"
        else:
            yield path, "look"


def _is_copy(path: str, read: set[str]) -> bool:
    """Whether it is `web.yml~`, `web.yml.bak` or `#web.yml#` beside `web.yml`."""
    folder, slash, name = path.rpartition("/")
    name = name.lstrip("#")
    return any(f"{folder}{slash}{name[:length]}" in read for length in range(4, len(name)))


def looks_like_a_spec(head: bytes) -> bool:
    """Whether a file that begins so may be somebody's spec."""
    return b"mikrom/v" in head and _LOOKS_LIKE_ONE.match(head) is not None

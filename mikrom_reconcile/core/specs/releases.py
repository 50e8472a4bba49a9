"""What is known of Firecracker's releases: one table, a row for each line of them, as their change log tells it. To add
one: a row, and run the contract suite over its binary (MIKROM_FIRECRACKERS). docs/devices.md says which were.
"""

import re
from datetime import date

import msgspec

Version = tuple[int, ...]  # such as (1, 12, 1); empty where it is not known


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One line of releases. `ended` is when its support did. `devices` is how many a VM can have at most, `boot_args`
    what it adds to a kernel's command line by itself, `adds` the fields that it was the first to know.
    `breaks_cgroups_v1` is the one release whose jailer fails where cgroups are v1.
    """

    line: Version
    ended: date | None = None
    devices: int = 18
    boot_args: str = ""
    adds: tuple[str, ...] = ()
    breaks_cgroups_v1: Version | None = None


RELEASES = (
    Release(line=(1, 10), ended=date(2025, 5, 7)),
    Release(line=(1, 11), ended=date(2025, 9, 18)),
    Release(line=(1, 12), ended=date(2025, 12, 17)),
    Release(line=(1, 13), ended=date(2026, 3, 9), boot_args=" pci=off", adds=("imds_compat",)),
    Release(line=(1, 14), ended=date(2026, 6, 3), boot_args=" pci=off"),
    Release(line=(1, 15), devices=17, boot_args=" pci=off"),  # its VMClock has an interrupt of its own
    Release(line=(1, 16), devices=17, boot_args=" pci=off", adds=("mtu",), breaks_cgroups_v1=(1, 16, 0)),
)

DEVICES = max(release.devices for release in RELEASES)
ADDED_BYTES = max(len(release.boot_args) for release in RELEASES)
"""What no release takes more of, and what any may add to a command line: no plan knows which one a host has."""


def version_in(said: str) -> Version:
    """The version in what a binary says of itself."""
    found = re.search(r"([0-9]+)\.([0-9]+)\.([0-9]+)", said)
    return tuple(map(int, found.groups())) if found else ()


def text_of(version: Version) -> str:
    """As people write it."""
    return ".".join(map(str, version))


def release_of(version: Version) -> Release:
    """The row of a version; of one that is newer than the table, the last."""
    return next((release for release in reversed(RELEASES) if release.line <= version[:2]), RELEASES[0])


def field_problem(version: Version, path: str) -> str:
    """Why this version does not take the field at `path`, "" if it does."""
    first = next(release.line for release in RELEASES if path.rpartition(".")[2] in release.adds)
    if release_of(version).line >= first:
        return ""
    return f"{path} is there from Firecracker {text_of(first)} on, and this is {text_of(version)}: leave it out"


def support_problem(version: Version, today: date) -> tuple[str, str]:
    """Why nobody mends what is found in this version, and what to use instead; "" where it is looked after."""
    ended = release_of(version).ended
    if not version or ended is None or ended > today:
        return "", ""
    since = f"since {ended}" if version[:2] >= RELEASES[0].line else "for long"
    supported = " or ".join(text_of(release.line) for release in RELEASES if not release.ended)
    return f"{text_of(version)}: out of support {since}", f"use {supported}"


def jailer_problem(version: Version, cgroups: int) -> str:
    """Why this version's jailer does not work with this version of cgroups, or ""."""
    if cgroups == 1 and version == release_of(version).breaks_cgroups_v1:
        line = text_of(version[:2])
        return f"the jailer of Firecracker {text_of(version)} does not work with cgroups v1: use a later {line}"
    return ""

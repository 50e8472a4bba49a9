"""What the spec of a VM alone decides against it, on every host: two tables of checks.

To add a check: a function from a spec to the places of its problems and what is wrong there, and a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.specs.images import BUILT_IN
from mikrom_reconcile.limits import SPECS

METADATA_OF_HOST = "mikrom"
"""The key under which a guest finds what its spec did not say."""

SECRET_REF = "secret_ref"  # noqa: S105 - the key alone
"""The only key of a mapping that stands for a secret."""

_SECRET = re.compile(r"file://(?:localhost)?/(?!.*(?:^|/)\.\.(?:/|$))[^?#]+|env://[A-Za-z_][A-Za-z0-9_]*")

Path = tuple[str | int, ...]
Problems = Iterator[tuple[Path, str]]


class VMCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One row: what finds the problems of a spec, each with the path of its field."""

    name: str
    problems: Callable[[VMSpec], Problems]


def problems_in(spec: VMSpec) -> Problems:
    """What is wrong with a spec that somebody writes now."""
    for check in (*UNSUPPORTED, *MISLEADING):
        yield from check.problems(spec)


def unsupported(spec: VMSpec) -> str | None:
    """Why no host can run `spec`, and what to write instead. None: nothing is known against it."""
    return next((message for check in UNSUPPORTED for _, message in check.problems(spec)), None)


def _image(spec: VMSpec) -> Problems:
    if spec.image not in BUILT_IN and spec.boot is None:
        known = ", ".join(f'"{name}"' for name in BUILT_IN)
        yield ("image",), f'the image "{spec.image}" is not built in as {known} is, and no Image document describes it'


def _vcpu_count(spec: VMSpec) -> Problems:
    count, path = spec.machine.vcpu_count, ("machine", "vcpu_count")
    if not 1 <= count <= SPECS.vcpus:
        yield path, f"machine.vcpu_count is {count}; Firecracker takes 1 to {SPECS.vcpus}"
    if spec.machine.smt and count > 1 and count % 2:
        yield path, f"machine.vcpu_count is {count}; with machine.smt it is 1 or an even number"


def _mem_size_mib(spec: VMSpec) -> Problems:
    size = spec.machine.mem_size_mib
    if spec.boot is None and size < SPECS.least_mem_mib:
        message = f'machine.mem_size_mib is {size}; "{spec.image}" needs {SPECS.least_mem_mib} or more'
        yield ("machine", "mem_size_mib"), message


def _mmds(spec: VMSpec) -> Problems:
    if spec.mmds is not None and not spec.network_interfaces:
        yield ("mmds",), "mmds is read over a network interface, and there is none: add one, or leave mmds out"
    if spec.mmds is not None and METADATA_OF_HOST in spec.mmds:
        message = f"mmds.{METADATA_OF_HOST} is what the host itself says of a VM; give yours another name"
        yield ("mmds", METADATA_OF_HOST), message


def _checks_without_interface(spec: VMSpec) -> Problems:
    for name, check in spec.checks.items():
        if check.type != "console" and not spec.network_interfaces:
            way_out = "add one, or check the console"
            message = f"checks.{name} is tried over a network interface, and there is none: {way_out}"
            yield ("checks", name), message


def _device_count(spec: VMSpec) -> int:
    return len(spec.drives) + len(spec.network_interfaces) + _has_root_disk(spec)


def _has_root_disk(spec: VMSpec) -> bool:
    return spec.boot is not None and spec.boot.rootfs is not None


def _devices(spec: VMSpec) -> Problems:
    count = _device_count(spec)
    if count > SPECS.devices:
        message = f"its drives and network_interfaces, with a root disk, are {count}; Firecracker takes {SPECS.devices}"
        yield ("drives",), message


def _boot_args(spec: VMSpec) -> Problems:
    size = len(spec.boot_args.encode())
    if size > SPECS.boot_args_bytes:
        yield ("boot_args",), f"boot_args has {size} bytes; a kernel command line takes {SPECS.boot_args_bytes}"


def _boot_args_with_devices(spec: VMSpec) -> Problems:
    addressed = spec.network_interfaces and " ip=" not in f" {spec.boot_args}"
    room = SPECS.boot_args_bytes - SPECS.boot_args_device_bytes * (_device_count(spec) + _has_root_disk(spec))
    room -= SPECS.boot_args_address_bytes if addressed else 0
    if len(spec.boot_args) > room:
        message = f"boot_args has {len(spec.boot_args)} characters; with the VM's devices and address, {room} are left"
        yield ("boot_args",), message


def _mmds_size(spec: VMSpec) -> Problems:
    size = len(msgspec.json.encode(spec.mmds))
    if size > SPECS.metadata_bytes:
        yield ("mmds",), f"mmds has {size} bytes as JSON; Firecracker takes {SPECS.metadata_bytes}"


def _checks(spec: VMSpec) -> Problems:
    for name, check in spec.checks.items():
        path = ("checks", name)
        if check.type == "tcp" and check.port is None:
            yield path, "a tcp check needs a port"
        if check.type == "console" and check.expect is None and check.deny is None:
            yield path, "a console check needs expect, deny or both"
        for field, word in (("expect", check.expect), ("deny", check.deny)):
            if word is not None and check.type != "console":
                yield (*path, field), f"{field} is for console checks, and this is {check.type}"
            try:
                re.compile(word or "")
            except re.error as error:
                yield (*path, field), f"{shown(word or '')} is no regular expression: {error}"
        if check.type == "console" and check.port is not None:
            yield (*path, "port"), "port is for tcp and http checks, and this is console"
        if not re.fullmatch("/[!-~]*", check.path):
            yield (*path, "path"), f"{shown(check.path)} is no path: write / and printable ASCII without spaces"
        if check.type != "http" and check.path != "/":
            yield (*path, "path"), f"path is for http checks, and this is {check.type}"


def _secrets(spec: VMSpec) -> Problems:
    yield from _secrets_in(spec.mmds, ("mmds",))


def _secrets_in(value: Any, path: Path) -> Problems:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _secrets_in(item, (*path, key))
    if not isinstance(value, dict) or SECRET_REF not in value:
        return
    if len(value) > 1:
        message = f"{SECRET_REF} stands alone in its mapping, or it is no reference and the guest reads it as text"
        yield (*path, SECRET_REF), message
    elif not isinstance(value[SECRET_REF], str) or not _SECRET.fullmatch(value[SECRET_REF]):
        told = shown(str(value[SECRET_REF]))
        yield (*path, SECRET_REF), f"{told} is no secret's reference: write file:///path or env://NAME"


UNSUPPORTED = (
    VMCheck(name="image", problems=_image),
    VMCheck(name="vcpu-count", problems=_vcpu_count),
    VMCheck(name="mem-size", problems=_mem_size_mib),
    VMCheck(name="metadata", problems=_mmds),
    VMCheck(name="check-without-interface", problems=_checks_without_interface),
    VMCheck(name="devices", problems=_devices),
    VMCheck(name="boot-args", problems=_boot_args),
)
"""What no host can run: each refuses it again, since its orders may come from another release."""

MISLEADING = (
    VMCheck(name="boot-args-with-devices", problems=_boot_args_with_devices),
    VMCheck(name="metadata-size", problems=_mmds_size),
    VMCheck(name="checks", problems=_checks),
    VMCheck(name="secrets", problems=_secrets),
)
"""What would fail later, or has another effect than it seems: VMs that are recorded with it go on."""

"""What is wrong with the spec of a VM, once its variables are known: tables of checks. Hosts use them, too."""

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Final

import msgspec

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.core.model.documents import Pointer
from mikrom_reconcile.core.parsing.schema_errors import nearest
from mikrom_reconcile.core.parsing.variables import walk
from mikrom_reconcile.core.parsing.yaml_words import shown
from mikrom_reconcile.core.specs import releases
from mikrom_reconcile.core.specs.images import BUILT_IN, init_of, init_words
from mikrom_reconcile.core.specs.networks import WHOLE, Network, port_name, port_of
from mikrom_reconcile.times_and_sizes import SPECS

METADATA_OF_HOST = "mikrom"  # the key under which a guest finds what its spec did not say
SECRET_REF = "secret_ref"  # noqa: S105 - the key alone
"""The only key of a mapping that stands for a secret."""

_SECRET = re.compile(r"file://(?:localhost)?/(?!.*(?:^|/)\.\.(?:/|$))[^?#]+|env://[A-Za-z_][A-Za-z0-9_]*")
_FILE = re.compile(r"file://(/[A-Za-z0-9_+.,-]*[A-Za-z0-9_+,-])+")

Problems = Iterator[tuple[Pointer, str]]
HintedProblems = Iterator[tuple[Pointer, str, str]]


def vm_problems(spec: VMSpec, images: Collection[str], networks: Mapping[str, Network]) -> HintedProblems:
    """What is wrong with a spec as written: path, message, hint; of one with missing references only these."""
    references = [*_references(spec, images, networks)]
    yield from references
    if not references:
        for check in CHECKS:
            for path, message in check(spec):
                yield path, message, ""


def unsupported(spec: VMSpec) -> str | None:
    """Why no host can run `spec`, and what to write instead. None: nothing is known against it."""
    return next((message for check in UNSUPPORTED for _, message in check(spec)), None)


def unsupported_by(version: releases.Version, spec: VMSpec) -> str | None:
    """Why this Firecracker cannot run what another one may, and what to write instead."""
    release = releases.release_of(version)
    too_new = filter(None, (releases.field_problem(version, path) for path in _not_in_all_releases(spec)))
    too_many = (f"{message} in {releases.text_of(version)}" for _, message in _devices(spec, release.devices))
    return next(chain(too_new, too_many), None)


def _not_in_all_releases(spec: VMSpec) -> Iterator[str]:
    if spec.mmds_config.imds_compat:
        yield "mmds_config.imds_compat"
    for name, nic in spec.network_interfaces.items():
        if nic.mtu is not None:
            yield f"network_interfaces.{name}.mtu"


def _references(spec: VMSpec, images: Collection[str], networks: Mapping[str, Network]) -> HintedProblems:
    if spec.image not in images:
        yield ("image",), f"unknown image {spec.image!r}", nearest(spec.image, tuple(images))
    for name, nic in spec.network_interfaces.items():
        path = ("network_interfaces", name)
        if (network := networks.get(nic.network)) is None:
            yield (*path, "network"), f"unknown network {nic.network!r}", nearest(nic.network, tuple(networks))
            continue
        if nic.ip is not None and (mistake := network.static_address_mistake(nic.ip)):
            yield (*path, "ip"), mistake, ""
        if (nic.pool or WHOLE) not in network.pools and (nic.pool or nic.ip is None):
            said = f"network {network.name} has no pool {nic.pool!r}" if nic.pool else "say which pool, or which ip"
            yield (*path, "pool"), said, nearest(nic.pool or "", tuple(filter(None, network.pools)))


def _image(spec: VMSpec) -> Problems:
    if spec.image not in BUILT_IN and spec.boot is None:
        known = ", ".join(f'"{name}"' for name in BUILT_IN)
        yield ("image",), f'the image "{spec.image}" is not built in as {known} is, and no Image document describes it'


def _machine(spec: VMSpec) -> Problems:
    count, size = spec.machine.vcpu_count, spec.machine.mem_size_mib
    if not 1 <= count <= SPECS.vcpus:
        yield ("machine", "vcpu_count"), f"machine.vcpu_count is {count}; Firecracker takes 1 to {SPECS.vcpus}"
    if spec.machine.smt and count > 1 and count % 2:
        yield ("machine", "vcpu_count"), f"machine.vcpu_count is {count}; with machine.smt it is 1 or an even number"
    if spec.machine.huge_pages == "2M" and size % 2:
        yield ("machine", "mem_size_mib"), f"machine.mem_size_mib is {size}; with huge_pages: 2M it is an even number"
    if spec.cpu_config is not None and spec.machine.cpu_template is not None:
        yield ("cpu_config",), "cpu_config and machine.cpu_template exclude each other: leave one out"
    if spec.balloon and spec.machine.huge_pages == "2M":
        yield ("balloon",), "balloon and machine.huge_pages: 2M exclude each other in Firecracker: leave one out"
    if spec.balloon and spec.balloon.amount_mib >= size:
        yield ("balloon", "amount_mib"), f"balloon.amount_mib leaves nothing of machine.mem_size_mib, {size}"
    if spec.boot is None and size < SPECS.least_mem_mib:
        message = f'machine.mem_size_mib is {size}; "{spec.image}" needs {SPECS.least_mem_mib} or more'
        yield ("machine", "mem_size_mib"), message


def _container(spec: VMSpec) -> Problems:
    """What nobody would do who is not the init of a container image."""
    runs = [(word,) for word in ("command", "env") if getattr(spec, word)]
    mounts = [("drives", name, "mount") for name, drive in spec.drives.items() if drive.mount]
    init = init_of(spec)
    if not init:
        for path in (*runs, *mounts):
            named = ".".join(path)
            yield path, f"{named} is for VMs of a container image, and without init= in boot_args: leave it out"
    elif init == "image":
        for path in runs:
            yield path, f"{path[0]} has no effect with init: image: the image's own init says what runs"


def _mounts(spec: VMSpec) -> Problems:
    taken: dict[str, str] = {}
    for name, drive in sorted(spec.drives.items()):
        if drive.mount and (other := taken.setdefault(drive.mount, name)) != name:
            yield ("drives", name, "mount"), f"drive {other} is mounted at {drive.mount} already"


def _encoded(spec: VMSpec) -> Problems:
    size = len(msgspec.json.encode(spec.mmds)) if spec.mmds else 0
    if size > SPECS.metadata_bytes:
        yield ("mmds",), f"mmds has {size} bytes as JSON; Firecracker takes {SPECS.metadata_bytes}"
    for word in ("command", "env"):
        if (said := getattr(spec, word)) and b"\\u0000" in msgspec.json.encode(said):
            yield (word,), f"{word} has a zero byte, which ends a word for every program"


def _without_interface(spec: VMSpec) -> Problems:
    if spec.network_interfaces:
        return
    if spec.mmds is not None:
        yield ("mmds",), "mmds is read over a network interface, and there is none: add one, or leave mmds out"
    for name in spec.secret_env:
        message = f"env.{name} is a secret, which is read over a network interface, and there is none: add one"
        yield ("env", name), message
    for name in (name for name, check in spec.checks.items() if check.type != "console"):
        way_out = "add one, or check the console"
        yield ("checks", name), f"checks.{name} is tried over a network interface, and there is none: {way_out}"


def _mmds(spec: VMSpec) -> Problems:
    if spec.mmds_config.imds_compat and not spec.has_metadata:
        yield ("mmds_config", "imds_compat"), "mmds_config.imds_compat is for VMs that have mmds: leave it out"
    if spec.mmds is not None and METADATA_OF_HOST in spec.mmds:
        message = f"mmds.{METADATA_OF_HOST} is what the host itself says of a VM; give yours another name"
        yield ("mmds", METADATA_OF_HOST), message


def _drives(spec: VMSpec) -> Problems:
    if _root_disks(spec) + sum(drive.is_root_device for drive in spec.drives.values()) > 1:
        yield ("drives",), "several root devices: is_root_device is for one drive, and none if its image has a rootfs"
    for name, drive in spec.drives.items():
        path, named = ("drives", name), f"drives.{name}"
        if (drive.size_mib is None) == (drive.source is None):
            yield path, f"{named} has either size_mib, for a new one, or source, an existing file: write one of them"
        if drive.source is not None and not _FILE.fullmatch(drive.source):
            message = f"{named}.source is {shown(drive.source)}: write file:/// and a path without . and .."
            yield (*path, "source"), message
        if drive.source is not None and drive.on_delete == "delete":
            yield (*path, "on_delete"), f"{named} is an existing file, which is never deleted: leave on_delete out"
        if drive.read_only and drive.mount:
            message = f"{named}.mount is for drives that are written: leave it out, and mount it in the guest"
            yield (*path, "mount"), message


def _root_disks(spec: VMSpec) -> int:
    return int(spec.boot is not None and spec.boot.rootfs is not None)


def _devices_of(spec: VMSpec) -> int:
    others = (spec.vsock is not None) + (spec.balloon is not None)
    return len(spec.drives) + len(spec.network_interfaces) + _root_disks(spec) + others


def gets_entropy(spec: VMSpec, most: int = releases.DEVICES) -> bool:
    """Whether it gets random numbers: if there is room for the device. The built-in guest has no driver for it."""
    room = _room_for_boot_args(spec) - SPECS.boot_args_device_bytes
    return spec.entropy and spec.boot is not None and _devices_of(spec) < most and len(spec.boot_args) <= room


def _devices(spec: VMSpec, most: int = releases.DEVICES) -> Problems:
    if (count := _devices_of(spec)) > most:
        yield ("drives",), f"its devices (disks, interfaces, vsock, balloon) are {count}; Firecracker takes {most}"


def _boot_args(spec: VMSpec) -> Problems:
    size = len(spec.boot_args.encode())
    if size > SPECS.boot_args_bytes:
        yield ("boot_args",), f"boot_args has {size} bytes; a kernel command line takes {SPECS.boot_args_bytes}"


def _room_for_boot_args(spec: VMSpec) -> int:
    addressed = spec.network_interfaces and " ip=" not in f" {spec.boot_args}"
    room: int = SPECS.boot_args_bytes - SPECS.boot_args_device_bytes * (_devices_of(spec) + _root_disks(spec))
    room -= releases.ADDED_BYTES
    room -= SPECS.boot_args_address_bytes if addressed else 0
    return room - sum(len(f" {word}") for word in init_words(spec))


def _boot_args_with_devices(spec: VMSpec) -> Problems:
    room = _room_for_boot_args(spec)
    over = len(spec.boot_args) - room
    if over > 0 and (spec.command or spec.env):
        path = "command" if spec.command else "env"
        yield (path,), f"command, env and boot_args are together {over} characters longer than a kernel takes"
    elif over > 0:
        message = f"boot_args has {len(spec.boot_args)} characters; with the VM's devices and address, {room} are left"
        yield ("boot_args",), message


_CHECK_FIELDS = {"port": ("tcp", "http"), "path": ("http",), "expect": ("console",), "deny": ("console",)}
"""The types of checks that a field is for."""


def _checks(spec: VMSpec) -> Problems:
    for name, check in spec.checks.items():
        path = ("checks", name)
        if check.type == "tcp" and check.port is None:
            yield path, "a tcp check needs a port"
        if check.type == "console" and check.expect is None and check.deny is None:
            yield path, "a console check needs expect, deny or both"
        for field, types in _CHECK_FIELDS.items():
            if check.type not in types and getattr(check, field) not in {None, "/"}:
                yield (*path, field), f"{field} is for {' and '.join(types)} checks, and this is {check.type}"
        for field, expression in (("expect", check.expect or ""), ("deny", check.deny or "")):
            try:
                re.compile(expression)
            except re.error as error:
                yield (*path, field), f"{shown(expression)} is no regular expression: {error}"
        if not re.fullmatch("/[!-~]*", check.path):
            yield (*path, "path"), f"{shown(check.path)} is no path: write / and printable ASCII without spaces"


def _secrets(spec: VMSpec) -> Problems:
    said = {"mmds": spec.mmds, "env": spec.secret_env}
    for place, value in walk(said) if any(said.values()) else ():
        if not isinstance(value, dict) or SECRET_REF not in value:
            continue
        path, reference = (*place, SECRET_REF), value[SECRET_REF]
        if len(value) > 1:
            message = f"{SECRET_REF} stands alone in its mapping, or it is no reference and the guest reads it as text"
            yield path, message
        elif not isinstance(reference, str) or not _SECRET.fullmatch(reference):
            yield path, f"{shown(str(reference))} is no secret's reference: write file:///path or env://NAME"


def _published(spec: VMSpec) -> Problems:
    taken: set[str] = set()
    for name, nic in spec.network_interfaces.items():
        for text in nic.publish:
            path, port = ("network_interfaces", name, "publish", text), port_name(text)
            try:
                port_of(text)
            except ValueError as error:
                yield path, f"{text} cannot be published: {error}"
            if port in taken:
                yield path, f"port {port} is published twice"
            taken.add(port)


UNSUPPORTED: Final = (
    _image, _machine, _container, _without_interface, _mmds, _drives, _devices, _boot_args, _published,
)  # fmt: skip
"""What no host can run: each refuses it again, since its orders may come from another release."""

CHECKS: Final = (*UNSUPPORTED, _boot_args_with_devices, _encoded, _checks, _mounts, _secrets)
"""The others fail later, or have another effect than it seems: VMs that are recorded with it go on."""

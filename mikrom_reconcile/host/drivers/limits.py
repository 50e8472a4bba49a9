"""What no driver can run, known before anything is started. It must not ask the machine."""

from __future__ import annotations

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.host.images import HELLO, LEAST_MEM_SIZE_MIB
from mikrom_reconcile.host.metadata import problem_of

MAX_VCPU_COUNT = 32
"""Firecracker's own limit."""

MAX_BOOT_ARGS_BYTES = 2047
"""A kernel command line has 2 KiB with its final zero; Firecracker adds nothing to it without devices."""


def unsupported(spec: VMSpec) -> str | None:
    """Why nobody can run `spec`, and what to write instead. None: nothing is known against it."""
    machine = spec.machine
    if spec.image != HELLO and spec.boot is None:
        return f'the image "{spec.image}" is not built in as "{HELLO}" is, and no Image document says what it boots'
    if not 1 <= machine.vcpu_count <= MAX_VCPU_COUNT:
        return f"machine.vcpu_count is {machine.vcpu_count}; Firecracker takes 1 to {MAX_VCPU_COUNT}"
    if machine.smt and machine.vcpu_count > 1 and machine.vcpu_count % 2:
        return f"machine.vcpu_count is {machine.vcpu_count}; with machine.smt it is 1 or an even number"
    if spec.boot is None and machine.mem_size_mib < LEAST_MEM_SIZE_MIB:
        return f'machine.mem_size_mib is {machine.mem_size_mib}; "{HELLO}" needs {LEAST_MEM_SIZE_MIB} or more'
    if spec.mmds is not None and not spec.network_interfaces:
        return "mmds is read over a network interface, and there is none: add one, or leave mmds out"
    if problem := problem_of(spec):
        return problem
    for name, check in spec.checks.items():
        if check.type != "console" and not spec.network_interfaces:
            return f"checks.{name} is tried over a network interface, and there is none: add one, or check the console"
    size = len(spec.boot_args.encode())
    if size > MAX_BOOT_ARGS_BYTES:
        return f"boot_args has {size} bytes; a kernel command line takes {MAX_BOOT_ARGS_BYTES}"
    return None

"""What a Firecracker is started and configured with. Only the last request boots the guest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.desired import VMSpec
from mikrom_reconcile.host.drivers.vmm import Places
from mikrom_reconcile.host.drivers.vmm_start import Command

PROGRAM = "Firecracker"

Request = tuple[str, dict[str, object], str]
"""Path, content, and what is being done, in words."""


def command(binary: Path, places: Places) -> Command:
    """A Firecracker without a configuration. It logs to standard output unless told otherwise: that is the console."""
    argv = (
        *(str(binary), "--id", places.vm, "--api-sock", str(places.socket)),
        *("--log-path", str(places.log), "--level", "Warn"),  # a level lower it logs each request, so each observation
        *("--metrics-path", str(places.metrics)),
    )
    # it makes neither its log nor its metrics file
    return Command(program=PROGRAM, argv=argv, output=places.console, fresh=(places.log, places.metrics))


def requests(spec: VMSpec, kernel: Path) -> Iterator[Request]:
    """What configures the VMM and boots its guest, in order."""
    machine: dict[str, object] = msgspec.to_builtins(spec.machine)
    if spec.machine.cpu_template is None:
        del machine["cpu_template"]
    yield "/machine-config", machine, "configuring the machine"
    boot_source: dict[str, object] = {"kernel_image_path": str(kernel), "boot_args": spec.boot_args}
    yield "/boot-source", boot_source, "configuring the boot source"
    yield "/actions", {"action_type": "InstanceStart"}, "starting the guest"

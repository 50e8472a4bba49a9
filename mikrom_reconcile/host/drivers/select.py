"""Which driver this machine uses: as MIKROM_DRIVER says, or the best that can run here. Looks, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.host.drivers import qemu_prerequisites
from mikrom_reconcile.host.drivers.firecracker_prerequisites import (
    find_firecracker,
    find_jailer,
    jail_problem,
    kvm_problem,
)
from mikrom_reconcile.settings import Settings

_WAY_OUT = "see `mikrom doctor`, or set MIKROM_DRIVER=simulated to go through the motions without microVMs"


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The driver's name, its VMM's binary, what a person should know of the choice ("": nothing), and the jailer that
    every VMM is started through, if that is wanted.
    """

    driver: str
    binary: Path = Path()
    note: str = ""
    jailer: Path | None = None


def choice_of(settings: Settings) -> Choice:
    """The driver to use. Raises SetupError saying what is missing for it."""
    if settings.driver == "simulated":
        return Choice(driver="simulated")
    problem = ""
    if settings.driver != "qemu":
        firecracker = find_firecracker(settings.firecracker, settings.state_dir)
        problem = kvm_problem() or ("" if firecracker else "no firecracker binary was found")
        if firecracker and not problem:
            return Choice(driver="firecracker", binary=firecracker, jailer=_jailer(settings, firecracker))
        if settings.driver == "firecracker":
            raise SetupError(f"{problem}; {_WAY_OUT}")
    if settings.jail == "on":
        why = problem or "MIKROM_DRIVER=qemu"
        raise SetupError(f"MIKROM_JAIL=on, and only a Firecracker can be jailed ({why}); {_WAY_OUT}")
    if (qemu := qemu_prerequisites.find_qemu()) is None:
        lacking = f"no {qemu_prerequisites.NAME} was found"
        raise SetupError(f"{problem}, and {lacking}; {_WAY_OUT}" if problem else f"{lacking}; {_WAY_OUT}")
    why = problem.partition(": ")[0]
    return Choice(driver="qemu", binary=qemu, note=f"QEMU runs its VMs, not Firecracker: {why}" if why else "")


def _jailer(settings: Settings, firecracker: Path) -> Path | None:
    """Whoever wants jails gets no VMM without one: raises SetupError."""
    if settings.jail == "off":
        return None
    jailer = find_jailer(settings.jailer, firecracker, settings.state_dir)
    if problem := jail_problem(settings.state_dir) or ("" if jailer else "no jailer was found beside firecracker"):
        raise SetupError(f"MIKROM_JAIL=on, and {problem}; see `mikrom doctor`, or unset MIKROM_JAIL")
    return jailer

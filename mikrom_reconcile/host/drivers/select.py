"""Which driver this machine uses, as MIKROM_DRIVER says or the best that can run here, and what it lacks for one.
Looks, and changes nothing: for the choice of a driver and for `doctor`.
"""

import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.specs import releases
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import VMMS

QEMU = "qemu-system-x86_64"

_KVM = Path("/dev/kvm")
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
        firecracker = find("firecracker", settings.firecracker, settings.state_dir)
        problem = kvm_problem() or ("" if firecracker else "no firecracker binary was found")
        if firecracker and not problem:
            return Choice(driver="firecracker", binary=firecracker, jailer=_wanted_jailer(settings, firecracker))
        if settings.driver == "firecracker":
            raise SetupError(f"{problem}; {_WAY_OUT}")
    if settings.jail == "on":
        why = problem or "MIKROM_DRIVER=qemu"
        raise SetupError(f"MIKROM_JAIL=on, and only a Firecracker can be jailed ({why}); {_WAY_OUT}")
    if (qemu := find(QEMU, None, settings.state_dir)) is None:
        lacking = f"no {QEMU} was found"
        raise SetupError(f"{problem}, and {lacking}; {_WAY_OUT}" if problem else f"{lacking}; {_WAY_OUT}")
    why = problem.partition(": ")[0]
    return Choice(driver="qemu", binary=qemu, note=f"QEMU runs its VMs, not Firecracker: {why}" if why else "")


def _wanted_jailer(settings: Settings, firecracker: Path) -> Path | None:
    """Whoever wants jails gets no VMM without one: raises SetupError."""
    if settings.jail == "off":
        return None
    jailer = find_jailer(settings.jailer, firecracker, settings.state_dir)
    if problem := jail_problem(settings.state_dir) or ("" if jailer else "no jailer was found beside firecracker"):
        raise SetupError(f"MIKROM_JAIL=on, and {problem}; see `mikrom doctor`, or unset MIKROM_JAIL")
    return jailer


def find_jailer(named: str | None, firecracker: Path, state_dir: Path) -> Path | None:
    """The jailer: `named` (MIKROM_JAILER), else that beside the Firecracker, else as Firecracker is looked for."""
    beside = firecracker.with_name("jailer")
    return beside if named is None and _is_program(beside) else find("jailer", named, state_dir)


def find(name: str, named: str | None, state_dir: Path) -> Path | None:
    """A binary: `named` (MIKROM_FIRECRACKER), else the first on PATH, else the one that `make apply` fetched. Raises
    SetupError when `named` is no program: whoever names one does not want another.
    """
    if named is not None:
        if not _is_program(path := Path(named).absolute()):
            raise SetupError(f"MIKROM_{name.upper()}={named} is not a program: correct or unset it")
        return path
    found = shutil.which(name) or shutil.which(name, path=state_dir / "bin")
    return None if found is None else Path(found).absolute()


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def version_of(binary: Path) -> str:
    """What the binary says of itself, such as "Firecracker v1.12.1". Raises SetupError when it says nothing."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, timeout=VMMS.version_s, check=True, text=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        raise SetupError(f"{binary} --version failed ({error}): is it a Firecracker for this machine?") from error
    return said.stdout.partition("\n")[0].strip()


def release_at(binary: Path) -> releases.Version:
    """The version of a binary, asked anew once the file is another; empty if it does not say."""
    try:
        return _release_at(binary, binary.stat().st_mtime_ns)
    except (OSError, SetupError):
        return ()


@lru_cache(maxsize=8)
def _release_at(binary: Path, _changed_ns: int) -> releases.Version:
    return releases.version_in(version_of(binary))


def jail_problem(state_dir: Path) -> str | None:
    """Why this process cannot start VMMs in jails below the state folder and what would help, or None."""
    if os.geteuid() != 0:
        return f"uid {os.geteuid()} cannot make jails: run as root, which is what a jail makes safe"
    nearest = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    flags = os.statvfs(nearest).f_flag
    for flag, name in ((os.ST_NODEV, "nodev"), (os.ST_NOEXEC, "noexec")):
        if flags & flag:
            return f"{nearest} is mounted {name}: mount it without, or set MIKROM_STATE_DIR to another file system"
    return None


def kvm_problem() -> str | None:
    """Why this process cannot use KVM and what would help, or None."""
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        remedy = "turn on virtualization in its firmware, or nested virtualization in its host"
        return f"this machine has no {_KVM}: {remedy}"
    except PermissionError:
        return f"{_KVM} is closed to this user: join the group that owns it, usually kvm, or run as root"
    except OSError as error:
        return f"{_KVM} cannot be opened: {error.strerror}"
    return None

"""What a machine needs to run Firecracker, and what it lacks: for the choice of a driver and for `doctor`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.limits import VMMS

_KVM = Path("/dev/kvm")


def find_firecracker(named: str | None, state_dir: Path) -> Path | None:
    """The binary: `named` (MIKROM_FIRECRACKER), else the first on PATH, else the one that `make apply` fetched.

    Raises SetupError when `named` is no program: whoever names one does not want another.
    """
    return _found("firecracker", named, state_dir)


def find_jailer(named: str | None, firecracker: Path, state_dir: Path) -> Path | None:
    """The jailer: `named` (MIKROM_JAILER), else that beside the Firecracker, else as Firecracker is looked for."""
    beside = firecracker.with_name("jailer")
    return beside if named is None and _is_program(beside) else _found("jailer", named, state_dir)


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


def _found(name: str, named: str | None, state_dir: Path) -> Path | None:
    if named is not None:
        if not _is_program(path := Path(named).absolute()):
            raise SetupError(f"MIKROM_{name.upper()}={named} is not a program: correct or unset it")
        return path
    folders = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    candidates = (folder / name for folder in (*folders, state_dir / "bin"))
    return next((path.absolute() for path in candidates if _is_program(path)), None)


def version_of(binary: Path) -> str:
    """What the binary says of itself, such as "Firecracker v1.12.1". Raises SetupError when it says nothing."""
    try:
        command = [str(binary), "--version"]
        answer = subprocess.run(command, capture_output=True, timeout=VMMS.version_s, check=True, text=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        raise SetupError(f"{binary} --version failed ({error}): is it a Firecracker for this machine?") from error
    return answer.stdout.partition("\n")[0].strip()


def kvm_problem() -> str | None:
    """Why this process cannot use KVM and what would help, or None."""
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return (
            f"this machine has no {_KVM}: turn on virtualization in its firmware, or nested virtualization in its host"
        )
    except PermissionError:
        return f"{_KVM} is closed to this user: join the group that owns it, usually kvm, or run as root"
    except OSError as error:
        return f"{_KVM} cannot be opened: {error.strerror}"
    return None


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)

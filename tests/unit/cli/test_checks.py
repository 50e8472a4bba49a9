"""What `doctor` finds in folders and binaries that a test has put there."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from mikrom_reconcile.doctor import machine
from mikrom_reconcile.doctor.machine import CHECKS, folder_check, run_checks
from mikrom_reconcile.host.drivers import jail, select
from mikrom_reconcile.output.doctor import Check
from mikrom_reconcile.settings import Settings, load
from tests.scratch import closed


@pytest.fixture
def settings() -> Settings:
    return load()


def found(settings: Settings, name: str) -> Check:
    return next(check for check in run_checks(CHECKS, settings) if check.name == name)


def program(path: Path, version: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


def test_a_binary_is_told_with_version_place_and_unknown_origin(settings: Settings, tmp_path: Path) -> None:
    binary = program(tmp_path / "firecracker", "Firecracker v9.9.9")
    check = found(dataclasses.replace(settings, firecracker=str(binary)), "firecracker")
    assert check.state == "ok"
    assert check.found.startswith(f"Firecracker v9.9.9 at {binary}, SHA-256 ")


def test_a_binary_of_known_content_is_told_with_its_origin(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = program(tmp_path / "firecracker", "Firecracker v9.9.9")
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    monkeypatch.setitem(machine.KNOWN_BINARIES, digest, "from a test")
    assert found(dataclasses.replace(settings, firecracker=str(binary)), "firecracker").found.endswith("from a test")


@pytest.mark.parametrize(("driver", "state"), [("auto", "broken"), ("firecracker", "broken"), ("simulated", "note")])
def test_a_missing_binary_matters_only_where_microvms_are_real(driver: str, state: str, settings: Settings) -> None:
    check = found(dataclasses.replace(settings, driver=driver, firecracker="/nowhere"), "firecracker")
    assert (check.state, bool(check.remedy)) == (state, True)


def test_a_program_that_is_no_firecracker_is_broken(settings: Settings, tmp_path: Path) -> None:
    binary = tmp_path / "firecracker"
    binary.write_text("#!/bin/sh\nexit 3\n")
    binary.chmod(0o755)
    check = found(dataclasses.replace(settings, driver="firecracker", firecracker=str(binary)), "firecracker")
    assert check.state == "broken"


def test_folders_are_fine_when_closed_noted_when_open_and_broken_when_no_folder(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    asked = dataclasses.replace(settings, state_dir=folder)
    assert found(asked, "state folder") == Check(
        name="state folder", state="ok", found=f"{folder} will be made, closed to others"
    )
    folder.mkdir(mode=0o700)
    assert found(asked, "state folder").state == "ok"
    folder.chmod(0o755)
    check = found(asked, "state folder")
    assert (check.state, check.remedy) == ("note", f"chmod 700 {folder}")
    folder.rmdir()
    folder.write_text("")
    assert found(asked, "state folder").state == "broken"
    assert found(dataclasses.replace(settings, state_dir=folder / "below"), "state folder").state == "broken"


def test_a_folder_below_one_that_this_user_may_not_enter_is_broken_and_no_mistake_of_ours(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "closed" / "state"
    folder.mkdir(parents=True)
    with closed(folder.parent):
        check = folder_check("MIKROM_STATE_DIR", folder)
        disk = machine.CHECKS["disk"](dataclasses.replace(settings, state_dir=folder))
    assert check.state == "broken"
    assert check.found.endswith("is not writable")
    assert isinstance(disk, Check)


def test_a_run_folder_that_is_too_long_for_sockets_is_noted(settings: Settings, tmp_path: Path) -> None:
    check = found(dataclasses.replace(settings, run_dir=tmp_path / ("x" * 100)), "run folder")
    assert (check.state, check.remedy) == ("note", "set MIKROM_RUN_DIR to a shorter path")


def test_without_a_broker_this_machine_is_the_only_host(settings: Settings) -> None:
    assert found(settings, "broker").found == "none: embedded, this machine is the only host"


def test_redis_is_only_noted_when_it_is_missing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found(settings, "redis-server").state == "note"
    redis = program(tmp_path / "redis-server", "")
    assert found(settings, "redis-server") == Check(name="redis-server", state="ok", found=f"{redis}, for `mikrom up`")


def test_whether_vmms_are_jailed_could_be_and_are_limited_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "kvm_problem", lambda: None)
    monkeypatch.setattr(select, "jail_problem", lambda _: None)
    monkeypatch.setattr(jail, "hierarchy", lambda: (1, dict.fromkeys(jail.CONTROLLERS, tmp_path)))
    binary = program(tmp_path / "firecracker", "Firecracker v9.9.9")
    off = dataclasses.replace(settings, driver="firecracker", firecracker=str(binary))
    on = dataclasses.replace(off, jail="on", jailer=str(program(tmp_path / "a-jailer", "Jailer v9.9.9")))
    assert found(off, "jail").found == "off: VMMs run as this user; MIKROM_JAIL=on puts each into a jail"
    check = found(on, "jail")
    assert (check.state, check.found.startswith(f"on: {tmp_path}/a-jailer, a user for each VM from 900000 to")) == (
        "ok",
        True,
    )
    assert check.found.endswith("cgroups v1 limit memory, CPU and threads")
    monkeypatch.setattr(jail, "hierarchy", lambda: (2, {"pids": tmp_path}))
    check = found(on, "jail")
    assert (check.state, check.found.endswith("no cgroups for memory, cpu")) == ("note", True)
    assert found(dataclasses.replace(on, jailer="/nowhere"), "jail").state == "broken"
    assert found(dataclasses.replace(on, driver="simulated"), "jail").state == "note"
    monkeypatch.setattr(select, "jail_problem", lambda _: "uid 7 cannot make jails: run as root")
    assert found(off, "jail").found.endswith("MIKROM_JAIL=on would not do: uid 7 cannot make jails")

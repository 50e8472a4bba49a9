"""Which driver is used where what is missing, and what is said of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.host.drivers import qemu, select
from mikrom_reconcile.host.drivers.select import Choice, choice_of
from mikrom_reconcile.settings import Settings, load
from mikrom_reconcile.times_and_sizes import VMMS

NO_KVM = "this machine has no /dev/kvm: turn on virtualization"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """With KVM, without any VMM."""
    monkeypatch.setattr(select, "kvm_problem", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MIKROM_FIRECRACKER", raising=False)
    return load()


def install(folder: Path, name: str, text: str = "exit 0") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o700)
    return path


def test_firecracker_comes_first(settings: Settings, tmp_path: Path) -> None:
    firecracker = install(tmp_path, "firecracker")
    install(tmp_path, select.QEMU)
    assert choice_of(settings) == Choice(driver="firecracker", binary=firecracker)


def test_without_firecracker_or_kvm_qemu_does_it_and_it_is_said(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = install(tmp_path, select.QEMU)
    found = choice_of(settings)
    assert (found.driver, found.binary) == ("qemu", qemu)
    assert found.note == "QEMU runs its VMs, not Firecracker: no firecracker binary was found"
    install(tmp_path, "firecracker")
    monkeypatch.setattr(select, "kvm_problem", lambda: NO_KVM)
    assert choice_of(settings).note == "QEMU runs its VMs, not Firecracker: this machine has no /dev/kvm"


def test_who_asks_for_a_driver_gets_no_other_and_no_note(settings: Settings, tmp_path: Path) -> None:
    qemu = install(tmp_path, select.QEMU)
    assert choice_of(dataclasses.replace(settings, driver="qemu")) == Choice(driver="qemu", binary=qemu)
    assert choice_of(dataclasses.replace(settings, driver="simulated")) == Choice(driver="simulated")
    with pytest.raises(SetupError, match=r"^no firecracker binary was found; see `mikrom doctor`"):
        choice_of(dataclasses.replace(settings, driver="firecracker"))


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ("auto", "no firecracker binary was found, and no qemu-system-x86_64 was found; see"),
        ("qemu", "no qemu-system-x86_64 was found; see"),
    ],
)
def test_what_is_missing_is_named_with_a_way_out(settings: Settings, driver: str, words: str) -> None:
    with pytest.raises(SetupError, match=f"^{words}.*MIKROM_DRIVER=simulated"):
        choice_of(dataclasses.replace(settings, driver=driver))


def test_who_wants_jails_gets_no_vmm_without_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = dataclasses.replace(settings, jail="on")
    monkeypatch.setattr(select, "jail_problem", lambda _: None)
    monkeypatch.delenv("MIKROM_JAILER", raising=False)
    firecracker = install(tmp_path, "firecracker")
    with pytest.raises(SetupError, match=r"^MIKROM_JAIL=on, and no jailer was found beside firecracker; see"):
        choice_of(wanted)
    jailer = install(tmp_path, "jailer")
    assert choice_of(wanted) == Choice(driver="firecracker", binary=firecracker, jailer=jailer)
    assert choice_of(settings).jailer is None
    with pytest.raises(SetupError, match=r"MIKROM_JAILER=/nope is not a program"):
        choice_of(dataclasses.replace(wanted, jailer="/nope"))
    monkeypatch.setattr(select, "jail_problem", lambda _: "uid 7 cannot make jails: run as root")
    with pytest.raises(SetupError, match=r"^MIKROM_JAIL=on, and uid 7 cannot make jails: run as root; see"):
        choice_of(wanted)


def test_no_qemu_stands_in_for_a_jailed_firecracker(settings: Settings, tmp_path: Path) -> None:
    install(tmp_path, select.QEMU)
    for driver in ("auto", "qemu"):
        with pytest.raises(SetupError, match=r"^MIKROM_JAIL=on, and only a Firecracker can be jailed"):
            choice_of(dataclasses.replace(settings, jail="on", driver=driver))


def test_a_file_system_without_devices_or_programs_holds_no_jail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert str(select.jail_problem(tmp_path)).startswith("uid 1000 cannot make jails: run as root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert select.jail_problem(tmp_path / "to/be/made") is None
    closed = os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, os.ST_NODEV, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: closed)
    assert f"{tmp_path} is mounted nodev" in str(select.jail_problem(tmp_path))


# ---- KVM or software emulation -----------------------------------------------------------------------------------


@pytest.fixture
def with_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qemu, "kvm_problem", lambda: None)
    monkeypatch.setattr(qemu, "_PVM", tmp_path / "no such module")


def test_without_kvm_guests_are_emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qemu, "kvm_problem", lambda: NO_KVM)
    assert qemu.why_not_kvm(tmp_path / "qemu-1") == "this machine has no /dev/kvm"


def test_the_kvm_of_a_pvm_guest_is_not_used(with_kvm: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qemu, "_PVM", tmp_path)
    assert "PVM" in qemu.why_not_kvm(tmp_path / "qemu-2")


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("echo MIKROM-EXIT bye", ""),
        ("echo hello; echo no MSR >&2; exit 1", "a trial guest did not boot under KVM: no MSR"),
        ("exit 0", "a trial guest did not boot under KVM: it said nothing"),
        ("exec sleep 9", "timed out"),
    ],
)
def test_kvm_is_used_if_a_guest_boots_under_it(
    with_kvm: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, why: str
) -> None:
    monkeypatch.setattr(qemu, "VMMS", replace(VMMS, probe_s=0.3))
    found = qemu.why_not_kvm(install(tmp_path, "qemu", does))
    assert why in found
    assert bool(found) == bool(why)


@pytest.mark.kvm
def test_a_kvm_that_can_be_opened_has_no_problem() -> None:
    assert select.kvm_problem() is None

"""`mikrom adopt` as a person uses it, on a microVM that Firecracker alone was started for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from tests.by_hand import started_by_hand
from tests.command import WEB, Mikrom, document, write_specs

pytestmark = pytest.mark.kvm
PROJECT = WEB.partition("---")[0]


@pytest.fixture
def by_hand(mikrom: Mikrom, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Popen[bytes]]]:
    """The socket of what was started in a folder that the host may take files from."""
    monkeypatch.setenv("MIKROM_DRIVER", "firecracker")
    for setting in ("MIKROM_IMAGE_DIRS", "MIKROM_DRIVE_DIRS"):
        monkeypatch.setenv(setting, f"{folder}/mine")
    write_specs(folder, PROJECT)
    with started_by_hand(os.environ["MIKROM_FIRECRACKER"], folder / "mine") as (socket, process):
        yield str(socket), process
        mikrom("destroy", "--yes")


def vms(mikrom: Mikrom) -> dict[str, int]:
    return {vm["name"]: vm["pid"] for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]}


def test_the_plan_after_it_is_empty_and_from_then_on_it_is_a_vm_as_any_other(
    mikrom: Mikrom, folder: Path, by_hand: tuple[str, Popen[bytes]]
) -> None:
    socket, process = by_hand
    shown = mikrom("adopt", "localhost/db", "--socket", socket, "--check").stdout
    assert f"socket: {socket}" in shown
    assert vms(mikrom) == {}

    said = mikrom("adopt", "localhost/db", "--socket", socket, "--out", "specs/db.yml").stdout
    assert "1 imported" in said
    assert "specs/db.yml describes it" in said
    assert (folder / "specs/db.yml").read_text() == shown[: shown.index("---\napiVersion: mikrom/v1\nkind: Refactor")]
    assert "Nothing to change: 1 VM" in mikrom("plan", "--detailed-exitcode").stdout
    assert vms(mikrom) == {"db": process.pid}
    (folder / "specs/db.yml").unlink()
    assert "describes it" in mikrom("adopt", "localhost/db", "--socket", socket, "--out", "specs/db.yml").stdout
    assert "is there already" in mikrom("adopt", "localhost/other", "--socket", socket, "--check", code=64).stderr

    process.kill()
    process.wait()
    assert "it is killed" in mikrom("plan").stdout
    mikrom("apply", "--yes")
    assert "by=hand root=/dev/vda rw" in mikrom("logs", "db").stdout
    assert "Nothing to change: 1 VM" in mikrom("plan", "--detailed-exitcode").stdout
    mikrom("destroy", "--yes")
    assert vms(mikrom) == {}
    assert (folder / "mine/existing/root.img").exists(), "it is somebody's file"


def test_who_writes_the_spec_and_its_import_by_hand_has_the_next_apply_take_it_over(
    mikrom: Mikrom, folder: Path, by_hand: tuple[str, Popen[bytes]]
) -> None:
    socket, process = by_hand
    shown = mikrom("adopt", "localhost/db", "--socket", socket, "--check").stdout
    write_specs(folder, f"{PROJECT}---\n{shown.replace('mem_size_mib: 16', 'mem_size_mib: 32')}")
    assert "machine.mem_size_mib is 16: correct the spec" in mikrom("apply", "--yes", code=2).stdout
    assert vms(mikrom) == {}
    write_specs(folder, f"{PROJECT}---\n{shown}")
    assert f"+ import   db on localhost: what runs at {socket} stays as it is" in mikrom("apply", "--yes").stdout
    assert "Nothing to change: 1 VM" in mikrom("plan").stdout
    assert vms(mikrom) == {"db": process.pid}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("db", "--check"), "write HOST/VM"),
        (("localhost/db",), "either --check or --out with a new FILE"),
        (("localhost/db", "--out", "specs/web.yml"), "--out with a new FILE"),
        (("localhost/db", "--out", "nowhere/db.yml"), "--out with a new FILE"),
        (("elsewhere/db", "--check"), "only localhost can be reached without a broker"),
        (("localhost/db", "--check"), "its driver, simulated, takes over nothing that was started by hand"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(mikrom: Mikrom, folder: Path, words: tuple[str, ...], said: str) -> None:
    done = mikrom("adopt", *words, "--socket", "/nowhere.sock", code=None)
    assert (done.returncode in {1, 64}, said in done.stderr) == (True, True), done.stderr

"""`mikrom simulate`: what an apply would do, in virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import WEB, Mikrom, document, names, write_specs

FLEET = """\
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: all}
spec: {hosts: {hv1: , hv2: }}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec: {replicas: 6, template: {image: hello}}
"""


def test_a_change_is_rehearsed_from_what_runs_and_nothing_is_touched(mikrom: Mikrom, folder: Path) -> None:
    mikrom("apply", "--yes")
    write_specs(folder, WEB.replace("mem_size_mib: 16", "mem_size_mib: 32") % 4)
    done = mikrom("simulate", "--boot", "2", "--svg", "picture.svg")
    assert "Converges after 8.0 s: 1 run, 4 actions.\nAt most 1 of 4 VMs of web are down at a time.\n" in done.stdout
    assert (folder / "picture.svg").read_text().count("<rect") == 7  # three VMs twice, one once
    assert len(names(mikrom)) == 3
    assert "3 unchanged" not in mikrom("plan").stdout


def test_vms_are_suspended_and_go_on_in_a_rehearsal_too(mikrom: Mikrom, folder: Path) -> None:
    mikrom("apply", "--yes")
    for state, applied in (("suspended", "3 suspended"), ("running", "3 started")):
        write_specs(folder, WEB.replace("image: hello", f"image: hello, state: {state}") % 3)
        assert "Converges after 1.0 s: 1 run, 3 actions.\n" in mikrom("simulate").stdout
        assert applied in mikrom("apply", "--yes").stdout


def test_the_same_seed_has_the_same_faults_and_what_is_refused_does_not_converge(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, FLEET)
    asked = ("simulate", "--fresh", "--faults", "hosts", "--faults", "starts", "--seed", "5", "-o", "json")
    first, again = (document("rehearsal", mikrom(*asked)) for _ in range(2))
    assert first == again
    assert first["converges"]
    assert first["actions"] > 6
    write_specs(
        folder,
        FLEET.replace("hello}", "hello, machine: {mem_size_mib: 64}, network_interfaces: {eth0: {network: no}}}"),
    )
    assert "network" in mikrom("simulate", "--fresh", code=1).stderr


def test_a_host_that_cannot_be_read_is_no_empty_one(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, FLEET)
    done = mikrom("simulate", code=None)
    assert "hv1, hv2 cannot be read: nobody knows what is there; --fresh begins with nothing" in done.stderr


@pytest.mark.parametrize("words", [("--boot", "0"), ("--faults", "fire"), ("--seed", "x")])
def test_nonsense_is_a_mistake_of_usage(mikrom: Mikrom, folder: Path, words: tuple[str, str]) -> None:
    mikrom("simulate", "--fresh", *words, code=64)


def test_a_picture_that_cannot_be_written_is_an_error_that_names_it(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, FLEET)
    assert "no/a.svg: No such file or directory" in mikrom("simulate", "--fresh", "--svg", "no/a.svg", code=1).stderr

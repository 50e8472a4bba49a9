"""Each command of docs/everyday-questions.md answers its question, and so does what it names of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from tests.command import PROJECT, forked

DOCUMENT = (PROJECT / "docs" / "everyday-questions.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+\?) \| `mikrom (.+)` \| (.*?) ?\|$", DOCUMENT, re.MULTILINE)
SPECS = """\
apiVersion: mikrom/v1
kind: Project
metadata: {name: shop}
---
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: lab}
spec: {hosts: {hv02: {}}}
---
apiVersion: mikrom/v1
kind: Network
metadata: {name: front}
spec: {cidr: 10.20.0.0/24}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 4
  template:
    image: hello
    machine: {mem_size_mib: %d}
    network_interfaces: {eth0: {network: front}}
"""
ANSWERS = {
    "get vms --amiss": r"web-003.*killed",
    "explain web-003": r"So +start on hv02: ",
    "logs web-003 --tail 20": "MIKROM-UP",
    "events --limit-to web-003 -n 1": r"started web-003 on hv02 in .*: it is killed \[",
    "describe 10.20.0.5": "name: web-003",
    "get vms --image hello": "web-000",
    "describe hv02": "vms: 4",
    "plan --without-host hv02": "4 blocked",
    "plan": "start +web-003",
    "simulate": r"Converges after .*: .*\nAt most 1 of 4 VMs of web are down at a time",
    "get fleets": r"shop +web +4 +4 +3 +\d of 4 VMs to go",
    "history web -n 1": "apply by .* files:",
    "render --explain -o text --limit web-003": r"machine\.mem_size_mib +32 +specs/web\.yml:\d+",
}
ON_THE_PAGE = {
    "Not as it should be": r"web-003.*killed.*start: .*MIKROM-UP",
    "The last runs": "started web-003 on hv02",
    "All VMs": r"web-003.*hello.*10\.20\.0\.5",
    "Hosts": "hv02",
    "What the next run would do": "start.*machine.mem_size_mib",
    "Fleets and rollouts": "of 4 VMs to go",
}


@pytest.fixture
def shop(own_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four VMs, of which one was killed, came back, and was killed again; and specs that want another size."""
    monkeypatch.setenv("MIKROM_DRIVER", "simulated")
    monkeypatch.setenv("MIKROM_HOST", "hv02")
    specs = own_environment / "specs" / "web.yml"
    specs.parent.mkdir()
    specs.write_text(SPECS % 16)
    vms = SimulatedDriver(own_environment / "state")
    for _ in range(2):
        done = forked(["apply", "--yes"], own_environment)
        assert done.returncode == 0, done.stderr
        vms.change("web-003", end="killed")
    specs.write_text(SPECS % 32)
    return own_environment


def test_every_question_is_answered_by_its_command_and_by_the_page(shop: Path) -> None:
    assert {command for _, command, _ in ROWS} == ANSWERS.keys()
    assert {place for _, _, place in ROWS if place} == ON_THE_PAGE.keys()
    for question, command, _ in ROWS:
        done = forked(command.split(), shop)
        assert re.search(ANSWERS[command], done.stdout), f"{question}\n{done.stdout}{done.stderr}"
    page = forked(["status", "-o", "html"], shop).stdout
    sections = dict(re.findall(r"<h2>([^<]+)</h2>(.*?)(?=<h2>|</main>)", page, re.DOTALL))
    for place, answer in ON_THE_PAGE.items():
        assert re.search(answer, re.sub(r"<[^>]+>", " ", sections[place]), re.DOTALL), (place, sections[place])


def test_an_image_that_no_vm_has_and_vms_that_are_well_are_no_error(shop: Path) -> None:
    assert forked(["get", "vms", "--image", "gone"], shop).stdout == "No VMs.\n"

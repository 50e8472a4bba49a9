"""Specs of many VMs, and what their hosts would report: all as wanted but for one in a hundred, drawn by lot.

    python -m benchmarks.many_vms FORM COUNT FOLDER [SHARE]      FORM: documents, replicas, or rich, as in `rich.py`

SHARE of the VMs run an older spec, none with 0. With `new` there are none yet, with `full` no host has room for any.
FOLDER then has `specs/`, the state folder of the control side (placements, as an earlier apply wrote them down), and
in `reports/` the answer of each host to the question that this very plan asks, in the bytes that travel over Redis.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from random import Random

import msgspec

from benchmarks import rich
from mikrom_reconcile import wiring
from mikrom_reconcile.control.sources.files import read_files
from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.core.model.desired import DesiredVM, Machine
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.core.model.observed import Capacity, HostReport, ObservedVM, ObserveQuery, Placements
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.core.planning.planner import prepare
from mikrom_reconcile.core.specs.load import hosts_of
from mikrom_reconcile.host.observe import differing, fleet_digests

VMS_PER_HOST = 100
DOCUMENTS_PER_FILE = 100
DRIFTED = 0.01
HERE = "localhost"

DOCUMENT = """\
apiVersion: mikrom/v1
kind: Fleet
metadata:
  name: {name}
  tags: [web, tier-1]
spec:
  hosts: all
  replicas: {replicas}
  vars:
    role: web
    owner: shop
  template:
    image: hello
    state: running
    machine:
      vcpu_count: 1
      mem_size_mib: 128
    boot_args: console=ttyS0 quiet loglevel=3
    restart:
      policy: always
      attempts: 3
  prune:
    max: 20%
    allow_empty: false
  lifecycle:
    prevent_destroy: false
"""
HEAD = """\
apiVersion: mikrom/v1
kind: Project
metadata: {{name: bench}}
---
apiVersion: mikrom/v1
kind: Inventory
metadata: {{name: bench}}
spec:
  hosts: {{{hosts}}}
"""


def write_specs(form: str, size: int, folder: Path) -> None:
    """Fleet documents of one VM each, or one fleet."""
    folder.mkdir(parents=True)
    if form == "rich":
        (folder / "rich.yml").write_text("".join(rich.documents(size)))
        return
    hosts = ", ".join(f"hv{number:05d}: {{}}" for number in range(max(1, size // VMS_PER_HOST)))
    (folder / "a.yml").write_text(HEAD.format(hosts=hosts))
    if form == "replicas":
        (folder / "web.yml").write_text(DOCUMENT.format(name="web", replicas=size))
        return
    for first in range(0, size, DOCUMENTS_PER_FILE):
        numbers = range(first, min(first + DOCUMENTS_PER_FILE, size))
        documents = (DOCUMENT.format(name=f"vm{number:06d}", replicas=1) for number in numbers)
        (folder / f"vm{first:06d}.yml").write_text("---\n".join(documents))


def write_answers(folder: Path, share: str) -> None:
    """The placements, and each host's report."""
    there = share not in {"new", "full"}
    specs = validate_specs(read_files([folder / "specs"]), wiring.schemas(), here="localhost")
    vms = with_addresses(render_all(specs, here=HERE)) if there else ()
    hosts = hosts_of(specs, HERE)
    placements = Placements(
        vms={vm.name: vm.host for vm in vms},
        covers=hosts,
        addresses={vm.name: vm.addresses for vm in vms if vm.addresses},
    )
    FileStore(folder / "state" / "store", folder / "state" / "locks").remember(specs.project, placements)
    drifted = float(share) if there else 0.0
    chosen = set(Random(1).sample(range(len(vms)), int(len(vms) * drifted)))
    rows: dict[str, list[ObservedVM]] = defaultdict(list)
    for number, vm in enumerate(vms):
        rows[vm.host].append(_row(vm, number, drifted=number in chosen))
    (folder / "reports").mkdir(exist_ok=True)
    for host, query in prepare(specs, placements, here=HERE).queries.items():
        (folder / "reports" / host).write_bytes(msgspec.json.encode(_report(host, query, rows[host], share)))


def with_addresses(vms: Iterable[DesiredVM]) -> tuple[DesiredVM, ...]:
    """The VMs with an address for each interface, in order."""
    free = {pool: count(int(IPv4Address(first))) for pool, first in (("web", "10.0.4.0"), ("db", "10.16.0.0"))}
    return tuple(
        msgspec.structs.replace(
            vm,
            addresses={
                name: str(IPv4Address(next(free[nic.pool or ""]))) for name, nic in vm.spec.network_interfaces.items()
            },
        )
        for vm in vms
    )


def _report(host: str, query: ObserveQuery, rows: list[ObservedVM], share: str) -> HostReport:
    digests = fleet_digests(rows)
    fleets = differing(digests, query.known)
    return HostReport(
        host=host,
        observed_at=datetime.now(UTC),
        capacity=Capacity(vcpu_count=64, mem_size_mib=1 if share == "full" else 1 << 20),
        highest_tokens={"bench": 7},
        digests=digests,
        vms=tuple(row for row in rows if row.fleet in fleets),
    )


def _row(vm: DesiredVM, number: int, *, drifted: bool) -> ObservedVM:
    """The VM as it is wanted, or as an older spec wanted it."""
    spec = msgspec.structs.replace(vm.spec, machine=Machine(vcpu_count=1, mem_size_mib=64)) if drifted else vm.spec
    return ObservedVM(
        name=vm.name,
        uid=f"01hz3v7q{number:018d}",
        project=vm.project,
        fleet=vm.fleet,
        host=vm.host,
        phase="running",
        state=vm.state,
        spec=spec,
        policy=vm.policy,
        addresses=vm.addresses,
        spec_digest=spec_digest(project=vm.project, fleet=vm.fleet, state=vm.state, spec=spec, policy=vm.policy)
        if drifted
        else vm.spec_digest,
        generation=1,
        token=7,
        created_at=datetime(2026, 11, 22, tzinfo=UTC),
        pid=1000 + number,
    )


def main(form: str, size: str, folder: str, share: str = str(DRIFTED)) -> None:
    """Write all of it."""
    write_specs(form, int(size), Path(folder) / "specs")
    write_answers(Path(folder), share)


if __name__ == "__main__":
    main(*sys.argv[1:])

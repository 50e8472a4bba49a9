"""Specs as people write them: networks, an image, drives, checks, constraints, spread, overrides and a rollout."""

from __future__ import annotations

from collections.abc import Iterator

HOSTS = 1000
FLEETS = 20
RACKS = 50

HEAD = f"""\
apiVersion: mikrom/v1
kind: Project
metadata: {{name: bench}}
---
apiVersion: mikrom/v1
kind: Network
metadata: {{name: lan}}
spec:
  cidr: 10.0.0.0/11
  nat: true
  pools:
    web: {{range: 10.0.0.10-10.15.255.250}}
    db: {{range: 10.16.0.0-10.31.255.250}}
  reserved: [10.0.1.0/24]
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: linux}}
spec:
  kernel: {{source: file:///images/vmlinux, sha256: {"a" * 64}}}
  rootfs: {{source: "https://images.example.net/linux.ext4", sha256: {"b" * 64}, read_only: true}}
  boot_args: console=ttyS0 quiet
---
apiVersion: mikrom/v1
kind: Inventory
metadata: {{name: bench}}
spec:
  hosts:
"""
HOST = "    hv{number:05d}: {{vars: {{rack: r{rack:02d}, cpu: {cpu}, ssd: true}}}}\n"
FLEET = """\
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: {name}, tags: [tier-{tier}]}}
spec:
  hosts: all
  replicas: {replicas}
  vars: {{role: {name}, port: 8080}}
  template:
    image: linux
    machine: {{vcpu_count: 1, mem_size_mib: 128}}
    boot_args: "console=ttyS0 {word} role=${{role}}"
    network_interfaces:
      eth0: {{network: lan, pool: {pool}}}
    drives:
      data: {{size_mib: 64}}
    checks:
      port: {{type: tcp, port: "${{port}}", interval: 5s}}
    mmds: {mmds}
  overrides:
    - {{match: "{name}-??0", machine: {{mem_size_mib: 160}}}}
    - {{match: "{name}-*7", boot_args: loud}}
  placement:
    constraint: [{{attribute: host.ssd, value: true}}]
    affinity: [{{attribute: host.cpu, value: amd, weight: 10}}]
    spread: [{{attribute: host.rack, max_skew: 2}}, {{attribute: host.name}}]
  rollout: {{serial: [1, "10%"], max_fail_percentage: 2}}
"""


def documents(count: int, hosts: int = HOSTS, *, word: str = "quiet") -> Iterator[str]:
    """Text of all specs: `count` VMs over so many hosts; to change the `word` restarts all of them."""
    yield HEAD
    for number in range(hosts):
        yield HOST.format(number=number, rack=number % RACKS, cpu=("amd", "intel")[number % 2])
    for number in range(FLEETS):
        differs = number % 4 == 0  # a quarter of the fleets differs from VM to VM
        yield FLEET.format(
            name=f"fleet{number:02d}",
            word=word,
            tier=number % 3,
            replicas=count // FLEETS,
            pool=("web", "db")[number % 2],
            mmds='{hostname: "${name}"}' if differs else "{role: web}",
        )

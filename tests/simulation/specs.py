"""What people want in a simulation: one shop and, on the same hosts, one bank, as they are at a moment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from mikrom_reconcile.core.model.documents import SourceFile, SourceTree

FLEETS = ("api", "db", "extra", "vault", "web")


@dataclass(frozen=True)
class Wanted:
    """All of it: what was protected once is for ever, whether its block, or its whole fleet, is in the specs or not."""

    hosts: tuple[tuple[str, str], ...]
    web: int = 3
    api: int = 2
    db: int = 1
    vault: int = 2
    args: str = "v1"
    mem_size_mib: int = 16
    has_db: bool = True
    has_lifecycle: bool = True
    has_claim: bool = False

    def names(self, project: str) -> dict[str, str]:
        """The VMs that are to run, and their fleets."""
        sizes = {"vault": self.vault} if project == "bank" else {"web": self.web, "api": self.api}
        if project == "shop" and self.has_db:
            sizes["db"] = self.db
        found = {f"{fleet}-{number:03d}": fleet for fleet, size in sizes.items() for number in range(size)}
        return found | ({"web-000": "extra"} if project == "bank" and self.has_claim else {})

    def tree(self, project: str) -> SourceTree:
        return _tree(self, project)


@cache
def _tree(wanted: Wanted, project: str) -> SourceTree:
    documents = _shop(wanted) if project == "shop" else _bank(wanted)
    text = yaml.safe_dump_all([_document("Project", project), _inventory(wanted), *documents], sort_keys=True)
    return SourceTree(revision=f"r{len(text)}", files=(SourceFile(path="all.yml", text=text),))


def _document(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    head = {"apiVersion": "mikrom/v1", "kind": kind, "metadata": {"name": name}}
    return {**head, "spec": spec} if spec else head


def _inventory(wanted: Wanted) -> dict[str, Any]:
    hosts = {name: {"state": state} if state else None for name, state in wanted.hosts}
    return _document("Inventory", "all", hosts=hosts)


def _shop(wanted: Wanted) -> list[dict[str, Any]]:
    web = {"image": "hello", "machine": {"mem_size_mib": wanted.mem_size_mib}, "boot_args": wanted.args}
    api = {
        "image": "hello",
        "machine": {"mem_size_mib": wanted.mem_size_mib},
        "network_interfaces": {"eth0": {"network": "lan", "pool": "all"}},
        "mmds": {"password": {"secret_ref": "env://PASSWORD"}},
    }
    lan = _document("Network", "lan", cidr="10.9.0.0/24", pools={"all": {"range": "10.9.0.10-10.9.0.19"}})
    documents = [
        lan,
        _document("Fleet", "web", replicas=wanted.web, template=web, rollout={"serial": [1]}),
        _document("Fleet", "api", replicas=wanted.api, template=api),
    ]
    if wanted.has_db:
        lifecycle = {"lifecycle": {"prevent_destroy": True}} if wanted.has_lifecycle else {}
        template = {"image": "hello", "drives": {"data": {"size_mib": 8}}}
        documents.append(_document("Fleet", "db", replicas=wanted.db, template=template, **lifecycle))
    return documents


def _bank(wanted: Wanted) -> list[dict[str, Any]]:
    template = {"image": "hello", "machine": {"mem_size_mib": wanted.mem_size_mib}}
    documents = [_document("Fleet", "vault", replicas=wanted.vault, template=template)]
    if wanted.has_claim:
        documents.append(_document("Fleet", "extra", instances={"web-000": None}, template=template))
    return documents

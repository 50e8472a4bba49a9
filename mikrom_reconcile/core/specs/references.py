"""What documents may refer to: hosts, groups, images, networks, attributes of hosts, and one another's names."""

from __future__ import annotations

from functools import cached_property
from itertools import islice

from mikrom_reconcile.core.model.specs import SpecDocument
from mikrom_reconcile.core.parsing.documents import Reading
from mikrom_reconcile.core.specs.images import BUILT_IN
from mikrom_reconcile.core.specs.inventory import Inventory
from mikrom_reconcile.core.specs.networks import network_mistakes, network_of, overlapping
from mikrom_reconcile.times_and_sizes import SPECS

GOOD, MISSPELT, NAMED = 2, 1, 0
"""How much of a document can be used: it obeys its schema, only has unknown keys, or at least has a name."""


class Documents:
    """All documents of a tree, and what they may refer to.

    `images` are the names that fleets may use; `images_known` says that none is missing, `hosts_known` that no host
    and no group is.
    """

    def __init__(self, reading: Reading, inventory: Inventory | None) -> None:
        misspelt = {id(document) for document in reading.misspelt}
        named = [each for each in reading.broken if id(each) not in misspelt and has_name(each)]
        self.by_state = {GOOD: reading.documents, MISSPELT: reading.misspelt, NAMED: named}
        self.inventory = inventory
        self.hosts = tuple(inventory.hosts) if inventory else ()
        self.groups = tuple(inventory.groups) if inventory else ()
        self.complete = reading.whole and all(document.kind in {"Fleet", "Project"} for document in reading.broken)
        self.hosts_known = self.complete or inventory is not None
        self.images_known = reading.whole and not any(document.kind == "Image" for document in reading.broken)
        self.images = (*BUILT_IN, *(each.name for each in reading.documents if each.kind == "Image"))

    @cached_property
    def first(self) -> dict[tuple[str, str], SpecDocument]:
        """The first document of each kind and name, by its place."""
        found: dict[tuple[str, str], SpecDocument] = {}
        documents = [document for documents in self.by_state.values() for document in documents]
        for document in sorted(filter(has_name, documents), key=lambda document: (document.path, document.line)):
            found.setdefault(identity(document), document)
        return found

    @cached_property
    def networks(self) -> dict[str, SpecDocument]:
        """The networks in which nothing is wrong by themselves."""
        networks = [document for document in self.by_state[GOOD] if document.kind == "Network"]
        return {each.name: each for each in networks if not any(network_mistakes(each.body["spec"]))}

    @cached_property
    def overlaps(self) -> dict[str, list[SpecDocument]]:
        """The networks before each that have addresses of it."""
        found: dict[str, list[SpecDocument]] = {}
        networks = [network_of(name, document.body["spec"]) for name, document in self.networks.items()]
        for name, other in islice(overlapping(networks), SPECS.max_problems):
            found.setdefault(name, []).append(self.networks[other])
        return found

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """What constraints can ask of hosts: the variables that any of them has."""
        inventory = self.inventory or Inventory()
        return tuple(sorted({f"host.{name}" for host in inventory.hosts for name in inventory.facts(host)}))


def has_name(document: SpecDocument) -> bool:
    """Whether a document, broken or not, has a name that others could have too; files of variables have one."""
    metadata = document.body.get("metadata")
    return document.kind.endswith("Vars") or (isinstance(metadata, dict) and isinstance(metadata.get("name"), str))


def identity(document: SpecDocument) -> tuple[str, str]:
    """What no second document may have: its kind and name."""
    return document.kind, "" if document.kind in {"Project", "Inventory"} else document.name

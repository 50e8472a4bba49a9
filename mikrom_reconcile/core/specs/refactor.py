"""What Refactor documents say, in Terraform's words: VMs that are called otherwise, let go, or taken over again. They
tell what has become of names. Nothing is restarted for it, and one that was done may stay where it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import msgspec

from mikrom_reconcile.core.model.documents import Diagnostic, SpecDocument
from mikrom_reconcile.core.parsing.schema_errors import nearest


class Refactor(msgspec.Struct, frozen=True, kw_only=True):
    """What all Refactor documents say, each name a fleet's or a VM's. `moved` maps former names to those in the specs,
    `removed` says what is to be destroyed and what let go, `hand_started` what somebody started: host and API socket.
    """

    documents: tuple[SpecDocument, ...] = ()
    moved: dict[str, str] = {}
    removed: dict[str, bool] = {}
    imported: frozenset[str] = frozenset()
    hand_started: dict[str, tuple[str, str]] = {}


def refactor_of(documents: Iterable[SpecDocument]) -> Refactor:
    """What the documents say."""
    documents = tuple(documents)
    specs = [document.body["spec"] for document in documents]
    imports = [entry for spec in specs for entry in spec.get("import", ())]
    return Refactor(
        documents=documents,
        moved={entry["from"]: entry["to"] for spec in specs for entry in spec.get("moved", ())},
        removed={entry["from"]: entry["destroy"] for spec in specs for entry in spec.get("removed", ())},
        imported=frozenset(entry["to"] for entry in imports),
        hand_started={one["to"]: (one["host"], one["socket"]) for one in imports if one.keys() >= {"host", "socket"}},
    )


def refactor_mistakes(refactor: Refactor, fleets: Iterable[str], vms: Collection[str]) -> Iterator[Diagnostic]:
    """What is wrong with the names, where the specs have these fleets and VMs."""
    known, said = (*fleets, *vms), dict[tuple[str, str], SpecDocument]()
    entries = (
        (document, ("spec", kind, number), entry)
        for document in refactor.documents
        for kind, listed in document.body["spec"].items()
        for number, entry in enumerate(listed)
    )
    for document, pointer, entry in entries:
        for word, name in ((word, entry[word]) for word in ("from", "to") if word in entry):
            message = hint = ""
            if (word, name) in said:
                first = said[word, name]
                message, hint = f"two entries say {word}: {name}", f"the other is in {first.path}:{first.line}"
            elif word == "from" and name in known:
                message, hint = f"{name} is still in the specs", "take it out of them, or remove this entry"
            elif word == "to" and name in refactor.moved:
                message, hint = f"{name} is moved itself, to {refactor.moved[name]}", "write where the chain ends"
            elif word == "to" and name not in known:
                message, hint = f"the specs have no fleet and no VM {name}", nearest(name, known)
            elif ("host" in entry) != ("socket" in entry):
                message, hint = f"{name} has only one of host and socket", "write both, or none for what was let go"
            elif "socket" in entry and name not in vms:
                message, hint = f"{name} is a fleet, and a socket is that of one VM", "write the name of one of its VMs"
            said.setdefault((word, name), document)
            if message:
                yield Diagnostic(document, (*pointer, word), message, hint)

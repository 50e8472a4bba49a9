"""What was asked of the hosts when every VM was where it is remembered: just that is asked again, for as long as the
specs and what is remembered of placements are the same.

Then specs need to be read only of the fleets that some host has otherwise, so that the cost follows the hosts and what
changed. What may concern other fleets than those is left to a look at everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, Protocol

import msgspec

from mikrom_reconcile import __version__
from mikrom_reconcile.core.model.digests import digest_of
from mikrom_reconcile.core.model.observed import ObservedState, ObserveQuery, Placements
from mikrom_reconcile.core.model.plan import VMChange
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.core.planning.guards import Limits
from mikrom_reconcile.core.planning.planner import Decision, Question, decide, numbered, question
from mikrom_reconcile.core.specs.expand import expand
from mikrom_reconcile.core.specs.load import Specs


class Cache(Protocol):
    """Bytes by key, which may be lost at any time."""

    def get(self, key: str) -> bytes | None:
        """What was put under `key` last, or None."""

    def put(self, key: str, content: bytes) -> None:
        """Replace what is kept under `key`."""


class NoCache:
    """Keeps nothing."""

    def get(self, key: str) -> bytes | None:
        """Nothing."""

    def put(self, key: str, content: bytes) -> None:
        """Forget it."""


NO_CACHE: Final = NoCache()


class KnownQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """The queries, how many VMs of each fleet each host has, and the digest of the placements that they follow from."""

    project: str
    placements: bytes
    queries: dict[str, ObserveQuery]
    sizes: dict[str, dict[str, int]]
    warnings: tuple[str, ...]

    def follows_from(self, placements: Placements) -> bool:
        """Whether these placements are those that the queries were made from."""
        return _digest(placements) == self.placements

    def differing(self, observed: ObservedState) -> frozenset[str] | None:
        """The fleets that some host has otherwise than expected; None if there is a host of which nobody can say."""
        fleets: set[str] = set()
        for view in observed.hosts:
            if view.report is None:
                return None
            found, known = view.report.digests, self.queries[view.host].known
            if found != known:
                fleets.update(fleet for fleet in found.keys() | known if found.get(fleet) != known.get(fleet))
        return frozenset(fleets)


def key_of(tree: SourceTree, extra_vars: Mapping[str, Any], schemas: Mapping[str, str], here: str) -> str:
    """The same for what gives the same specs, whoever asks for what."""
    texts = blake2b(digest_size=16)
    for file in tree.files:
        texts.update(f"{len(file.path)} {file.path}{len(file.text)} {file.text}".encode())
    return digest_of((__version__, schemas, here, extra_vars, texts.hexdigest())).partition(":")[2]


def known_question(asked: Question) -> KnownQuestion | None:
    """What to remember of a question; None unless it expects every VM where it is remembered, and no other."""
    expected = sum(len(group.names) for group in asked.expected.values())
    if not expected == len(asked.pending) == len(asked.placements.vms):
        return None
    sizes: dict[str, dict[str, int]] = {host: {} for host in asked.queries}
    for (host, fleet), group in asked.expected.items():
        sizes[host][fleet] = len(group.names)
    return KnownQuestion(
        project=asked.specs.project,
        placements=_digest(asked.placements),
        queries=asked.queries,
        sizes=sizes,
        warnings=asked.warnings,
    )


def narrowed(
    known: KnownQuestion, some: Specs, observed: ObservedState, placements: Placements, limits: Limits, here: str
) -> Decision | None:
    """What is decided from `some`, the specs of just the fleets that differ; None if others may have a part in it.

    They have none while only VMs of those fleets are seen, all of them, where they are remembered, and keep their
    addresses: then nothing is made, removed, moved, placed or leased.
    """
    some = msgspec.structs.replace(some, project=known.project)  # where nothing differs, no document was read
    where = {vm.name: placements.vms.get(vm.name, "") for vm in expand(some)}
    asked = question(some, _of(placements, where), here=here)
    if any(known.queries[host].known.get(fleet) != group.digest for (host, fleet), group in asked.expected.items()):
        return None  # another build of this release asked for something else
    for row in (row for view in observed.hosts if view.report for row in view.report.vms):
        ours = row.project == known.project and row.phase != "unreadable"
        if ours and row.name not in where:
            return None
    decision = decide(asked, observed, limits)
    as_remembered = decision.placements == msgspec.structs.replace(asked.placements, covers=decision.placements.covers)
    if decision.doubtful or not as_remembered or any(_looks_beyond(change) for change in decision.plan.changes):
        return None
    unchanged = Counter(decision.plan.unchanged)
    fleets = {fleet.name for fleet in some.fleets}
    for host, sizes in known.sizes.items():
        unchanged[host] += sum(size for fleet, size in sizes.items() if fleet not in fleets)
    warnings = (*known.warnings, *decision.plan.warnings[len(asked.warnings) :])
    plan = msgspec.structs.replace(
        decision.plan, id="", unchanged=dict(sorted((+unchanged).items())), warnings=warnings
    )
    covers = tuple(sorted({*placements.covers, *known.queries}))
    return msgspec.structs.replace(
        decision, plan=numbered(plan), placements=msgspec.structs.replace(placements, covers=covers)
    )


def _of(placements: Placements, where: dict[str, str]) -> Placements:
    """What is remembered of these VMs alone."""
    addresses = {name: found for name, found in placements.addresses.items() if name in where}
    fleets = {name: fleet for name, fleet in placements.fleets.items() if name in where}
    return msgspec.structs.replace(placements, vms=where, addresses=addresses, fleets=fleets)


def _looks_beyond(change: VMChange) -> bool:
    """Whether other fleets matter to a change: for a host to place a VM on, for an address that nobody else has."""
    desired, observed = change.desired, change.observed
    return observed is None or (desired is not None and desired.addresses != observed.addresses)


def _digest(placements: Placements) -> bytes:
    return blake2b(msgspec.msgpack.encode(placements), digest_size=16).digest()

"""What is to be done: changes, what was refused, and the actions that carry the changes out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from datetime import datetime
from typing import Any, Literal, TypeVar

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.observed import ObservedVM

ChangeKind = Literal[
    "create", "start", "stop", "pause", "resume", "update", "restart", "replace", "move", "delete", "wait", "blocked"
]
Verb = Literal["create", "start", "stop", "pause", "resume", "update", "restart", "delete"]
Impact = Literal["record", "live", "restart", "replace"]
"""What changing a field costs: only the record, a call to the running VMM, a restart, a new root disk."""


class FieldChange(msgspec.Struct, frozen=True, kw_only=True):
    """One field of the spec that changes. A field that appears or vanishes has None on that side."""

    path: str
    before: Any
    after: Any
    impact: Impact


class VMChange(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one VM and why. `wanted` is the kind that a `wait` or `blocked` change stands for.

    `rule` is the id of the rule in `diff` that decided.
    """

    name: str
    fleet: str
    host: str
    kind: ChangeKind
    reasons: tuple[str, ...]
    rule: str = ""
    wanted: ChangeKind | None = None
    fields: tuple[FieldChange, ...] = ()
    desired: DesiredVM | None = None
    observed: ObservedVM | None = None


class Expect(msgspec.Struct, frozen=True, kw_only=True):
    """What an action expects to find, or it is refused as stale. No record: `uid` is None.

    `generation` is that of the record, or 0 where none was seen (a tombstone may hold a higher one).
    """

    uid: str | None
    generation: int


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One verb on one VM on one host. `id` is a digest of the content; `desired` is None for a delete.

    `deadline_s` bounds the whole action, the graceful stop inside included. `mem_limit_mib` is what all VMs of the host
    may be promised by its inventory; None: what the host has.
    """

    id: str
    verb: Verb
    host: str
    vm: str
    project: str
    desired: DesiredVM | None
    expect: Expect
    deadline_s: float
    mem_limit_mib: int | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A guard said no. `vm` is empty when it concerns the whole fleet; the message says numbers and way out."""

    fleet: str
    vm: str
    rule: str
    message: str


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """At most `down` of a fleet's `size` VMs that should run are taken down at a time; `pending` are still to go.

    With a rollout, `batches` are the sizes of its batches and `batch` is the number of the one that it is at.
    """

    down: int
    size: int
    pending: int = 0
    batch: int = 0
    batches: tuple[int, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one run would do. `id` is a digest of the content without the time: same input, same bytes.

    `unchanged` counts the VMs of each host that are as they should be. `unreachable` maps a host that gave no
    report to the reason. `peaks` tells of each fleet in which running VMs are taken down how many are down at once.
    `selected` is how many VMs it is about, None for all.
    """

    id: str
    project: str
    revision: str
    taken_at: datetime
    changes: tuple[VMChange, ...]
    unchanged: dict[str, int]
    actions: tuple[Action, ...]
    refusals: tuple[Refusal, ...]
    unreachable: dict[str, str]
    warnings: tuple[str, ...]
    peaks: dict[str, Peak] = {}
    selected: int | None = None


T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def group_by(things: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The things with the same key together, all in the order in which they came."""
    groups: dict[K, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups

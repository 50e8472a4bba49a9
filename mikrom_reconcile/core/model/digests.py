"""Digests: equal digests mean that nothing has to be compared.

A digest starts with its version ("1:…"), so digests of different versions never match. Unequal digests mean only that
the fields have to be compared: a new release never restarts a VM because a hash changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import Policy, State, VMSpec
from mikrom_reconcile.core.model.observed import Drift
from mikrom_reconcile.core.model.specs import SourceTree

VERSION = "1"
_SIZE = 16  # bytes; 128 bits keep chance collisions out of any fleet

canonical_json = msgspec.json.Encoder(order="deterministic").encode
"""Bytes that depend on the value only: object keys sorted, struct fields in their declared order."""


def digest_of(value: Any) -> str:
    """Versioned BLAKE2b of the canonical JSON of `value`, 34 characters."""
    return f"{VERSION}:{blake2b(canonical_json(value), digest_size=_SIZE).hexdigest()}"


def texts_digest(tree: SourceTree) -> str:
    """Digest of what the files of a tree say, whatever they are called and wherever they lie."""
    return digest_of(sorted(file.text for file in tree.files))


def spec_digest(*, project: str, fleet: str, state: State, spec: VMSpec, policy: Policy) -> str:
    """Digest of everything that is recorded for a VM; its name and host are not part of it."""
    return digest_of((project, fleet, state, spec, policy))


def row_digest(spec_digest: str, addresses: Mapping[str, str]) -> str:
    """What a fleet's digest says of a VM's spec: which addresses it leases is no part of that, but of what it has."""
    return f"{spec_digest} {canonical_json(addresses).decode()}" if addresses else spec_digest


def fleet_digest(rows: Iterable[tuple[str, str, str, tuple[Drift, ...]]]) -> str:
    """Digest of one fleet on one host from `(name, row digest, phase, drift)` rows in any order.

    Control computes it from what it wants (phase as wanted, no drift), the host from what it sees.
    """
    lines = sorted(
        f"{name}\0{spec}\0{phase}\0{canonical_json(drift).decode() if drift else ''}\n"
        for name, spec, phase, drift in rows
    )
    return f"{VERSION}:{blake2b(''.join(lines).encode(), digest_size=_SIZE).hexdigest()}"

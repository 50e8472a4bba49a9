"""Values as JSON, and digests of them. Equal digests mean that nothing has to be compared; unequal ones only that the
fields have to be: a new release never restarts a VM because a hash changed, and their versions ("1:…") never match.
"""

import threading
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from mikrom_reconcile.core.model import desired, documents, observed

VERSION = "1"
_SIZE = 16  # bytes; 128 bits keep chance collisions out of any fleet

T = TypeVar("T")

UNREADABLE = (ValueError, RecursionError)
"""What is raised for bytes that are no JSON of a type; msgspec's errors are ValueErrors, as that of bad UTF-8 is."""

canonical_json = msgspec.json.Encoder(order="deterministic").encode
"""Bytes that depend on the value only: object keys sorted, struct fields in their declared order."""


def digest_of(value: Any) -> str:
    """Versioned BLAKE2b of the canonical JSON of `value`, 34 characters."""
    return f"{VERSION}:{blake2b(canonical_json(value), digest_size=_SIZE).hexdigest()}"


def texts_digest(tree: documents.SourceTree) -> str:
    """Digest of what the files of a tree say, whatever they are called and wherever they lie."""
    return digest_of(sorted(file.text for file in tree.files))


def spec_digest(project: str, fleet: str, state: desired.State, spec: desired.VMSpec, policy: desired.Policy) -> str:
    """Digest of everything that is recorded for a VM; its name and host are not part of it."""
    return digest_of((project, fleet, state, spec, policy))


def row_digest(spec_digest: str, addresses: Mapping[str, str]) -> str:
    """What a fleet's digest says of a VM's spec: which addresses it leases is no part of that, but of what it has."""
    return f"{spec_digest} {canonical_json(addresses).decode()}" if addresses else spec_digest


def fleet_digest(rows: Iterable[tuple[str, str, str, tuple[observed.Drift, ...]]]) -> str:
    """Digest of one fleet on one host from `(name, row digest, phase, drift)` rows in any order. Control computes it
    from what it wants (phase as wanted, no drift), the host from what it sees.
    """
    lines = sorted(
        f"{name}\0{spec}\0{phase}\0{canonical_json(drift).decode() if drift else ''}\n"
        for name, spec, phase, drift in rows
    )
    return f"{VERSION}:{blake2b(''.join(lines).encode(), digest_size=_SIZE).hexdigest()}"


_READY: set[object] = set()
_ONE_AT_A_TIME = threading.Lock()


def ready(kind: type[T]) -> type[T]:
    """`kind`, to be given to msgspec, which knows all of it from now on."""
    if kind not in _READY:
        with _ONE_AT_A_TIME:
            msgspec.json.Decoder(kind)
            _READY.add(kind)
    return kind


def decoded(content: Any, kind: type[T]) -> T | None:
    """What JSON was kept; None if nothing was, or if it is broken, or another release wrote it in another shape."""
    try:
        return msgspec.json.decode(content, type=ready(kind)) if content else None
    except UNREADABLE:
        return None

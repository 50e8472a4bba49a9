"""What hosts have of images: the answer to a question beside those about VMs."""

from __future__ import annotations

from datetime import datetime

import msgspec


class CachedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of an image on a host. `vms` have records that name it; `last_used_at` is when somebody last wanted it."""

    sha256: str
    size_bytes: int
    vms: int
    last_used_at: datetime


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has cached, by digest. `failed` maps digests that it was to fetch to what went wrong.

    `error` says why there is no answer; that never means that nothing is there.
    """

    host: str
    cached: tuple[CachedFile, ...] = ()
    failed: dict[str, str] = {}
    error: str = ""

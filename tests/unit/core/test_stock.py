"""What hosts tell of their images, in the bytes that travel."""

from __future__ import annotations

import msgspec

from mikrom_reconcile.core.model.observed import CachedFile, Stock
from tests.samples import NOW


def test_what_a_host_has_of_images_arrives_as_it_was_told() -> None:
    cached = CachedFile(sha256="a" * 64, size_bytes=5, vms=2, last_used_at=NOW)
    for told in (Stock(host="hv1", cached=(cached,), failed={"b" * 64: "404"}), Stock(host="hv2", error="no answer")):
        assert msgspec.json.decode(msgspec.json.encode(told), type=Stock) == told

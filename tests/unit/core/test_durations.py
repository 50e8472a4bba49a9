from __future__ import annotations

import pytest

from mikrom_reconcile.core.model.desired import seconds_of


@pytest.mark.parametrize(
    ("duration", "seconds"), [("250ms", 0.25), ("10s", 10), ("5m", 300), ("1h", 3600), ("2d", 172_800), ("0s", 0)]
)
def test_a_duration_is_a_number_and_a_unit(duration: str, seconds: float) -> None:
    assert seconds_of(duration) == seconds

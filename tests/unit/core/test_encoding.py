import pytest

from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.observed import Progress


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"token": 1, "age_s": 2.0}', Progress(token=1, age_s=2.0)),
        (b"", None),
        (None, None),
        (b'{"token": 1, ', None),
        (b'{"token": "one"}', None),
        (b"\xff", None),
    ],
)
def test_what_is_broken_or_of_another_release_is_as_if_nothing_had_been_kept(
    content: bytes | None, found: Progress | None
) -> None:
    assert decoded(content, Progress) == found

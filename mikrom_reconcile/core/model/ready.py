"""Types that several threads may decode at once.

msgspec completes what it knows of a type when it meets it first, and lets other threads run meanwhile: a second that
meets the type then ends the whole process by a segmentation fault.
"""

from __future__ import annotations

import threading
from typing import TypeVar

import msgspec

T = TypeVar("T")

_READY: set[object] = set()
_ONE_AT_A_TIME = threading.Lock()


def ready(kind: type[T]) -> type[T]:
    """`kind`, to be given to msgspec, which knows all of it from now on."""
    if kind not in _READY:
        with _ONE_AT_A_TIME:
            msgspec.json.Decoder(kind)
            _READY.add(kind)
    return kind

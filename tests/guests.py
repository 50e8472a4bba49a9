"""Which guest `image: hello` is in this run of the tests, which driver is tested, and what both ask of tests.

`make nested` has a Linux in the place of the demo guest, on an emulated machine that is many times slower.
"""

from __future__ import annotations

import os

DRIVER = os.environ.get("MIKROM_TESTED_DRIVER", "")
"""The only driver that is tested; "" tests each, and real Linux guests on the one that runs everywhere."""

LINUX = os.environ.get("MIKROM_TESTED_GUEST") == "linux"

MEM_MIB = 96 if LINUX else 4
"""What a guest needs to boot."""

SLOWNESS = 6 if LINUX else 1
"""How many times longer tests wait before they give up."""

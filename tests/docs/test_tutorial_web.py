"""The tutorial of examples/web, in a network namespace of its own.

python -m tests.docs.test_tutorial_web      writes into it what its commands print now; look at git diff
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.console import differences
from tests.docs.documents import WEB, read_and_do, write_anew
from tests.docs.test_tutorial import reader
from tests.linux_guest import PROGRAMS, built
from tests.netns import own_namespace

__all__ = ["reader"]

# the kernel comes from Debian's archive, and each boot takes seconds of CPU time
pytestmark = [pytest.mark.soak, pytest.mark.needs(*PROGRAMS, "curl", "ip", "nft"), pytest.mark.timeout(600)]


def test_the_example_serves_what_the_tutorial_says(reader: Path) -> None:
    built()  # in the namespace there is no way out to an archive
    with own_namespace():
        steps, endings = read_and_do(WEB, reader, "qemu")
    found = list(differences(steps, endings))
    assert len(steps) > 12
    assert not found, "\n\n".join([*found, "`python -m tests.docs.test_tutorial_web` shows anew what commands print"])


if __name__ == "__main__":
    built()
    with own_namespace():
        write_anew(WEB, "qemu")

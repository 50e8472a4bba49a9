"""The documents whose commands are run, and how: by the tests, and to show anew what they print.

python -m tests.docs.documents      writes into the documents what their commands print now; look at git diff
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from tests.docs.console import Ending, Step, differences, play, rewritten, steps_of
from tests.scratch import SCRATCH

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/tutorial.md")
LINUX = "docs/tutorial-linux.md"
"""Takes root, QEMU and a network namespace: `python -m tests.docs.test_tutorial_linux` shows it anew."""


def read_and_do(document: str, folder: Path, driver: str) -> tuple[list[Step], list[Ending]]:
    """The steps of a document, done in `folder` with microVMs of `driver`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MIKROM_DRIVER": driver}
    before = ""
    if document == "README.md":  # its reader is in a checkout, where `make apply` has prepared everything
        shutil.copytree(ROOT / "specs", folder / "specs")
        before = f"make() {{ [[ $1 == apply ]] && {what_make_apply_runs()}; }}"
    steps = steps_of((ROOT / document).read_text(encoding="utf-8"))
    return steps, play(steps, folder=folder, environment=environment, before=before)


def what_make_apply_runs() -> str:
    """The recipe without its preparation."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^apply:.*\n\t@tools/bootstrap\.sh apply (bash -c '.*')$", makefile, re.MULTILINE)
    assert recipe is not None
    return recipe[1].replace("$(SPECS)", "specs/").replace("$(ARGS)", "").replace("$$", "$")


def main() -> None:
    driver = "firecracker" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "simulated"
    for document in DOCUMENTS:
        write_anew(document, driver)


def write_anew(document: str, driver: str) -> None:
    """The document with what its commands print now."""
    with tempfile.TemporaryDirectory(prefix="mk-", dir=SCRATCH) as folder:
        os.environ.update(MIKROM_STATE_DIR=f"{folder}/state", MIKROM_RUN_DIR=f"{folder}/run")
        (reader := Path(folder) / "reader").mkdir()
        steps, endings = read_and_do(document, reader, driver)
    path = ROOT / document
    path.write_text(rewritten(path.read_text(encoding="utf-8"), steps, endings), encoding="utf-8")
    for left in differences(steps_of(path.read_text(encoding="utf-8")), endings):
        sys.stdout.write(f"{document}, to be mended by hand: {left}\n")


if __name__ == "__main__":
    main()

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
WEB = "docs/tutorial-web.md"
"""The same, of examples/web: `python -m tests.docs.test_tutorial_web`."""
IN_A_CHECKOUT = {"README.md": ("specs", "apply"), WEB: ("examples", "example")}
"""Whose reader is in a checkout: what folder of it is used, and by which make target, which has prepared everything."""


def read_and_do(document: str, folder: Path, driver: str) -> tuple[list[Step], list[Ending]]:
    """The steps of a document, done in `folder` with microVMs of `driver`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MIKROM_DRIVER": driver}
    before = ""
    if document in IN_A_CHECKOUT:
        used, target = IN_A_CHECKOUT[document]
        shutil.copytree(ROOT / used, folder / used, ignore=shutil.ignore_patterns("images.yml"))
        before = f"make() {{ [[ $1 == {target} ]] && {what_make_runs(target)}; }}"
    steps = steps_of((ROOT / document).read_text(encoding="utf-8"))
    return steps, play(steps, folder=folder, environment=environment, before=before)


def what_make_runs(target: str) -> str:
    """The recipe without its preparation."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(rf"^{target}:.*\n\t@tools/bootstrap\.sh {target} (.*)$", makefile, re.MULTILINE)
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

"""Folders that nobody else may look into: state, sockets, locks, consoles.

`Path.mkdir(mode, parents=True)` closes only the last one; its parents would be open to everybody.
"""

from __future__ import annotations

import os
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each closed to everybody else (0700). What is there stays as it is."""
    try:
        os.mkdir(folder, 0o700)  # noqa: PTH102 - pathlib takes three times as long, and this is done for every action
    except FileExistsError:
        if not folder.is_dir():
            raise
    except FileNotFoundError:
        make_folder(folder.parent)
        make_folder(folder)

"""Folders that nobody else may look into: state, sockets, locks, consoles.

`Path.mkdir(mode, parents=True)` closes only the last one; its parents would be open to everybody.
"""

from __future__ import annotations

from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each closed to everybody else (0700). What is there stays as it is."""
    try:
        folder.mkdir(0o700, exist_ok=True)
    except FileNotFoundError:
        make_folder(folder.parent)
        make_folder(folder)

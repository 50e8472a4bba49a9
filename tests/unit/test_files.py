"""Folders and files are made where they were said to be, or nothing is lost."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from mikrom_reconcile.dispatch.transport.shared_state import machine_id
from mikrom_reconcile.system.files import make_folder, write_named


@pytest.mark.parametrize("folder", ["/proc/nothing", "/proc/nothing/deep"])
def test_a_place_in_which_nothing_can_be_made_is_an_error(folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        make_folder(Path(folder))


@pytest.fixture
def little_room() -> Iterator[int]:
    """No file may grow past this many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_file_held_is_there_when_there_is_no_room_for_more(tmp_path: Path, little_room: int) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(b"older")
    with pytest.raises(OSError, match="large"):
        write_named(str(plan), b"x" * (little_room + 1))
    assert plan.read_bytes() == b"older"
    write_named(str(plan), b"new")
    assert plan.read_bytes() == b"new"


def test_all_who_ask_first_at_once_are_told_the_same_id(tmp_path: Path) -> None:
    start = Barrier(8)

    def ask(_: int) -> str:
        start.wait()
        return machine_id(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["machine"]

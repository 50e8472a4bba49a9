from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.control.sources import cache as module
from mikrom_reconcile.control.sources.cache import FolderCache
from mikrom_reconcile.limits import SOURCES
from tests.full_disk import small_disk


def test_what_was_put_is_there_for_another_process(tmp_path: Path) -> None:
    FolderCache(tmp_path / "cache").put("a", b"content")
    assert FolderCache(tmp_path / "cache").get("a") == b"content"
    assert FolderCache(tmp_path / "cache").get("b") is None
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache" / "a").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 100])
def test_what_is_not_whole_is_not_known(content: bytes, tmp_path: Path) -> None:
    cache = FolderCache(tmp_path)
    cache.put("a", b"content")
    (tmp_path / "a").write_bytes(content)
    assert cache.get("a") is None


def test_a_flipped_bit_is_not_known(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path)
    cache.put("a", b"replicas: 3")
    stored = bytearray((tmp_path / "a").read_bytes())
    stored[-1] ^= 1
    (tmp_path / "a").write_bytes(stored)
    assert cache.get("a") is None


def test_what_others_could_have_written_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FolderCache(tmp_path)
    cache.put("a", b"content")
    (tmp_path / "a").chmod(0o620)
    assert cache.get("a") is None
    (tmp_path / "a").chmod(0o600)
    assert cache.get("a") == b"content"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert cache.get("a") is None


def test_a_link_or_a_fifo_in_an_entrys_place_is_not_followed(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path)
    cache.put("a", b"content")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "c")
    assert cache.get("b") is None
    assert cache.get("c") is None


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path)
    for number in range(SOURCES.cached_trees):
        cache.put(f"k{number}", b"content")
        os.utime(tmp_path / f"k{number}", (number, number))
    assert cache.get("k0") == b"content"
    cache.put("new", b"content")
    assert cache.get("k0") == b"content"
    assert cache.get("k1") is None
    assert len(list(tmp_path.iterdir())) == SOURCES.cached_trees


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    FolderCache(tmp_path / "file" / "cache").put("a", b"content")
    assert FolderCache(tmp_path / "file" / "cache").get("a") is None


def test_what_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOURCES", replace(SOURCES, cached_bytes=10))
    FolderCache(tmp_path).put("a", b"x" * 11)
    assert list(tmp_path.iterdir()) == []


def test_the_draft_of_a_writer_that_was_killed_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the next process has the same pid."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    cache = FolderCache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.put("a", b"first")
    assert len(list(tmp_path.iterdir())) == 1
    cache.put("a", b"second")
    assert cache.get("a") == b"second"


def test_a_full_disk_leaves_no_draft(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=64):
        cache = FolderCache(tmp_path / "disk")
        cache.put("a", b"x" * 100_000)
        assert list((tmp_path / "disk").iterdir()) == []
        cache.put("a", b"small")
        assert cache.get("a") == b"small"

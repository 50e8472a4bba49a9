"""What only the embedded store has to answer: odd files, other processes, killed holders."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.core.model.errors import BusyError, SetupError
from mikrom_reconcile.core.model.observed import Placements
from tests.fleet import ROOT
from tests.full_disk import fill, small_disk
from tests.samples import record
from tests.scratch import closed

SOMEWHERE = Placements(vms={"a": "localhost"}, covers=("localhost",))


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return store_in(tmp_path)


def store_in(folder: Path) -> FileStore:
    return FileStore(folder / "store", folder / "locks")


def test_files_and_all_folders_above_them_are_closed_to_others(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "state" / "store", tmp_path / "state" / "deep" / "locks")
    store.lease("demo", holder="test", ttl_s=1, at_least=0)
    store.remember("demo", SOMEWHERE)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert {modes.pop(name) for name in ("demo", "demo.lease")} == {"0o600"}
    assert modes == dict.fromkeys(("state", "store", "placements", "deep", "locks"), "0o700")


def test_a_second_holder_is_told_who_the_first_is(store: FileStore, tmp_path: Path) -> None:
    lease = store.lease("demo", holder="apply by ana@build7", ttl_s=1, at_least=0)
    with pytest.raises(BusyError, match=rf"apply by ana@build7 \(pid {os.getpid()}, since 20\d\d-.* UTC\)"):
        store_in(tmp_path).lease("demo", holder="beat", ttl_s=1, at_least=0)
    lease.release()
    assert store.lease("demo", holder="beat", ttl_s=1, at_least=0).token == lease.token + 1


def test_a_killed_holder_leaves_the_lease_free_and_its_token_used(store: FileStore, tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from mikrom_reconcile.control.stores.files import FileStore\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "store = FileStore(folder / 'store', folder / 'locks')\n"
        "lease = store.lease('demo', holder='doomed', ttl_s=1, at_least=7)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert store.lease("demo", holder="next", ttl_s=1, at_least=0).token == 8


@pytest.mark.parametrize("step", range(1, 5))
def test_a_kill_while_a_run_is_kept_shows_it_once_and_leaves_nothing_behind(
    step: int, store: FileStore, tmp_path: Path
) -> None:
    code = (
        "import os, pathlib, sys; from mikrom_reconcile.control.stores.files import FileStore\n"
        "from tests.samples import record\n"
        "left, folder = [int(sys.argv[1])], pathlib.Path(sys.argv[2])\n"
        "def kill(event, _):\n"
        "    if event in {'open', 'os.utime', 'os.rename', 'os.remove'}:\n"
        "        left[0] -= 1\n"
        "        left[0] or os.kill(os.getpid(), 9)\n"
        "store = FileStore(folder / 'store', folder / 'locks')\n"
        "store.save(record('r', exit_code=None))\n"
        "sys.addaudithook(kill)\n"
        "store.save(record('r'))\n"
    )
    argv = [sys.executable, "-c", code, str(step), str(tmp_path)]
    assert subprocess.run(argv, cwd=ROOT, check=False).returncode == -9
    assert [run.run_id for run in store.runs(9)] == ["r"]
    later = datetime.now(UTC) + timedelta(seconds=1)
    store.save(record("s", started_at=later, finished_at=later))
    assert [run.run_id for run in store.runs(9)] == ["s", "r"]
    assert not [*tmp_path.rglob("*.new")]


def test_a_lease_whose_file_was_replaced_is_not_held(store: FileStore, tmp_path: Path) -> None:
    lease = store.lease("demo", holder="test", ttl_s=1, at_least=0)
    assert lease.held()
    (tmp_path / "locks" / "demo.lease").unlink()
    assert not lease.held()
    assert store.lease("demo", holder="other", ttl_s=1, at_least=0).held()
    assert not lease.held()


def test_a_project_name_cannot_climb_out_of_the_lock_folder(store: FileStore, tmp_path: Path) -> None:
    store.lease("../../demo", holder="test", ttl_s=1, at_least=0)
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["..%2F..%2Fdemo.lease"]


@pytest.mark.parametrize("content", [b"", b"no store at all" * 100])
def test_a_broken_file_is_as_if_it_were_absent_and_is_replaced(
    content: bytes, store: FileStore, tmp_path: Path
) -> None:
    store.remember("demo", SOMEWHERE)
    store.save(record("r"))
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            path.write_bytes(content)
    assert store.placements("demo") == Placements()
    assert [run.conclusion for run in store.runs(9)] in ([], ["cannot be shown: another release wrote it"])
    store.remember("demo", SOMEWHERE)
    store.save(record("r"))
    assert store.placements("demo") == SOMEWHERE
    assert store.runs(9) == (record("r"),)


def test_an_odd_file_in_the_place_of_one_is_never_waited_for(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "store" / "placements").mkdir(parents=True)
    os.mkfifo(tmp_path / "store" / "placements" / "demo")
    assert store.placements("demo") == Placements()


def test_no_name_climbs_out_of_the_store(store: FileStore, tmp_path: Path) -> None:
    store.remember("../../demo", SOMEWHERE)
    assert store.placements("../../demo") == SOMEWHERE
    assert [path.name for path in (tmp_path / "store" / "placements").iterdir()] == ["..%2F..%2Fdemo"]


def test_many_threads_may_use_one_store_at_once(store: FileStore, tmp_path: Path) -> None:
    tokens: list[int] = []

    def work(number: int) -> None:
        other = store_in(tmp_path)
        for _ in range(5):
            lease = other.lease(f"project-{number}", holder="test", ttl_s=1, at_least=0)
            tokens.append(lease.token)
            other.remember("demo", SOMEWHERE)
            lease.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tokens) == sorted([1, 2, 3, 4, 5] * 8)


def test_a_store_that_cannot_be_used_is_done_without_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = FileStore(tmp_path / "file" / "store", tmp_path / "locks")
    store.save(record("lost"))
    store.remember("demo", SOMEWHERE)
    assert (store.runs(1), store.placements("demo")) == ((), Placements())
    assert store.lease("demo", holder="t", ttl_s=1, at_least=7).token == 7
    (line,) = caplog.messages
    assert "going on without" in line


def test_a_store_that_is_somebody_elses_has_no_runs_to_show_and_says_why(
    store: FileStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(record("r"))
    with closed(tmp_path):
        assert store.runs(9) == ()
    assert [line.partition(": ")[0] for line in caplog.messages] == [
        f"{tmp_path / 'store'} cannot be used (Permission denied)"
    ]
    assert store.runs(9) == (record("r"),)


def test_a_store_on_a_full_disk_still_tells_what_it_holds(tmp_path: Path) -> None:
    with small_disk(tmp_path / "store", kib=1024):
        store = store_in(tmp_path)
        store.save(record("kept"))
        fill(tmp_path / "store")
        store.save(record("lost"))
        assert [run.run_id for run in store.runs(2)] == ["kept"]


def test_a_lock_folder_that_cannot_be_written_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="must be writable"):
        FileStore(tmp_path / "store", tmp_path / "file").lease("demo", holder="t", ttl_s=1, at_least=0)

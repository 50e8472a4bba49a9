"""A process is one process: proven by more than its pid, waited for without blocking, and never left as a zombie."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.system import locks, processes

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
END = (sys.executable, "-c", "import time; time.sleep(0.3)")


@contextmanager
def spawned(argv: tuple[str, ...], folder: Path, *, locked: bool = False) -> Iterator[processes.Identity]:
    """A process with `folder`/stdin as standard input, gone and reaped at the end."""
    path = folder / "stdin"
    stdin = locks.open_taken(path) if locked else os.open(path, os.O_RDWR | os.O_CREAT)
    assert stdin is not None
    output = os.open(folder / "output", os.O_RDWR | os.O_CREAT)
    try:
        identity = processes.identify(processes.spawn(argv, stdin=stdin, output=output))
    finally:
        os.close(stdin)
        os.close(output)
    assert identity is not None
    try:
        yield identity
    finally:
        processes.kill(identity)
        assert processes.wait_for_end(identity, 10)
        processes.reap()
        assert not Path(f"/proc/{identity.pid}").exists()


def test_a_process_is_known_by_pid_start_and_boot(tmp_path: Path) -> None:
    with spawned(SLEEP, tmp_path) as identity:
        assert processes.is_alive(identity)
        assert processes.identify(identity.pid) == identity
        for other in (
            replace(identity, starttime=identity.starttime + 1),
            replace(identity, boot_id="another boot"),
            replace(identity, pid=os.getpid()),
        ):
            assert not processes.is_alive(other)
            assert not processes.is_known(other)
            assert processes.open_pidfd(other) is None
    assert not processes.is_alive(identity)


def test_its_age_is_the_time_since_its_start(tmp_path: Path) -> None:
    with spawned(SLEEP, tmp_path) as identity:
        time.sleep(0.05)
        assert 0.03 <= processes.age_s(identity) < 10


def test_a_process_is_found_by_its_standard_input_even_when_that_was_unlinked(tmp_path: Path) -> None:
    path = str(tmp_path / "stdin")
    with spawned(SLEEP, tmp_path) as identity:
        assert processes.stdin_of(identity.pid) == path
        Path(path).unlink()
        assert processes.stdin_of(identity.pid) == path
    assert processes.stdin_of(identity.pid) is None


def test_only_who_holds_the_lock_is_found_by_it_not_who_reads_the_same_file(tmp_path: Path) -> None:
    path = str(tmp_path / "stdin")
    with spawned(SLEEP, tmp_path, locked=True) as holder, spawned(SLEEP, tmp_path) as reader:
        assert processes.stdin_of(reader.pid) == path
        assert processes.with_locked_stdin(path) == (holder.pid,)
    assert processes.with_locked_stdin(path) == ()


def test_a_zombie_is_known_but_not_alive_until_it_is_reaped(tmp_path: Path) -> None:
    with spawned(END, tmp_path) as identity:
        assert processes.wait_for_end(identity, 10)
        assert processes.is_known(identity)
        assert not processes.is_alive(identity)
        assert processes.identify(identity.pid) is None
        processes.reap()
        assert not processes.is_known(identity)
        assert processes.open_pidfd(identity) is None


def test_waiting_ends_at_its_time(tmp_path: Path) -> None:
    with spawned(SLEEP, tmp_path) as identity:
        began = time.monotonic()
        assert not processes.wait_for_end(identity, 0.05)
        assert not processes.wait_for_end(identity, -1)
        assert 0.05 <= time.monotonic() - began < 5


def test_reaping_leaves_the_children_of_others_alone(tmp_path: Path) -> None:
    theirs = os.posix_spawn(sys.executable, END, {})
    os.waitid(os.P_PID, theirs, os.WEXITED | os.WNOWAIT)
    with spawned(END, tmp_path) as identity, ThreadPoolExecutor(4) as pool:
        os.waitid(os.P_PID, identity.pid, os.WEXITED | os.WNOWAIT)
        list(pool.map(lambda _: processes.reap(), range(8)))
        assert not processes.is_known(identity)
    assert os.waitpid(theirs, 0) == (theirs, 0)


def test_reaping_goes_on_when_somebody_else_was_faster(tmp_path: Path) -> None:
    with spawned(END, tmp_path) as identity:
        os.waitpid(identity.pid, 0)
        other = os.posix_spawn(sys.executable, END, {})
        os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
        processes.reap()
        assert identity.pid not in processes._children
        os.waitpid(other, 0)


def test_a_program_that_cannot_run_is_an_os_error_and_no_child(tmp_path: Path) -> None:
    before = set(processes._children)
    with pytest.raises(FileNotFoundError):
        processes.spawn(("/nope",), stdin=0, output=1)
    assert processes._children == before

"""System calls that fail under a start, a stop and a delete, and VMMs that answer anything but what they should.

Each fault leads to an ActionError of the right kind that names what was being done, no VMM is left, and once the
cause is gone the same deed works.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.errors import ActionError, PermanentError, TemporaryError
from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver
from tests.contract.drivers import ANSWER_S, DEADLINE_S, RealBench, record_of, wait_until

pytestmark = pytest.mark.kvm

RECORD = record_of("a")

TEMPORARY = [errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EMFILE, errno.EIO]
PERMANENT = [errno.EACCES, errno.EPERM, errno.EROFS]


def failing(number: int, real: Callable[..., object], *, calls: int) -> Callable[..., object]:
    """`real`, whose call number `calls` fails."""
    made = 0

    def call(*arguments: object, **named: object) -> object:
        nonlocal made
        made += 1
        if made == calls:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    return call


@pytest.mark.parametrize("number", TEMPORARY + PERMANENT)
@pytest.mark.parametrize("call", ["posix_spawn", "open", "fsync", "replace", "unlink", "mkdir", "pidfd_open"])
def test_a_system_call_that_fails_under_a_start_leaves_no_vmm_and_no_obstacle(
    real: RealBench, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    for calls in (1, 2, 4):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing(number, getattr(os, call), calls=calls))
            try:
                real.driver.start(RECORD, deadline_s=DEADLINE_S)
            except ActionError as error:
                assert isinstance(error, TemporaryError if number in TEMPORARY else PermanentError)  # noqa: PT017
                assert os.strerror(number) in str(error)  # noqa: PT017
                patched.undo()
                wait_until(lambda: not real.all_pids(), "the end of what was begun")
        real.driver.start(RECORD, deadline_s=DEADLINE_S)
        assert real.driver.observe(RECORD).status == "running"
        assert len(real.all_pids()) == 1
        real.driver.delete(RECORD)
    assert real.leftovers() == []


@pytest.mark.parametrize("deed", ["stop", "delete"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_system_call_that_fails_under_a_stop_or_delete_is_told_and_the_next_try_ends_it(
    real: RealBench, monkeypatch: pytest.MonkeyPatch, deed: str, number: int
) -> None:
    for call in ("pidfd_open", "unlink"):
        real.driver.start(RECORD, deadline_s=DEADLINE_S)
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing(number, getattr(os, call), calls=1))
            with pytest.raises(ActionError, match=os.strerror(number)):
                end(real, deed)
        end(real, deed)
        assert real.all_pids() == []
    real.driver.delete(RECORD)
    assert real.leftovers() == []


def end(real: RealBench, deed: str) -> None:
    if deed == "stop":
        real.driver.stop(RECORD, grace_s=0)
    else:
        real.driver.delete(RECORD)


FAKE = """#!{python}
import socket, sys, time
path = sys.argv[sys.argv.index("--api-sock") + 1]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(64)
ok = b"HTTP/1.1 200 \\r\\n"
booted = False
while True:
    connection, _ = server.accept()
    while request := connection.recv(65536):
        try:
            if not booted:
                connection.sendall(b"HTTP/1.1 204 \\r\\n\\r\\n" * request.count(b"PUT "))
                booted = b"InstanceStart" in request
                continue
            {answer}
            break
        except OSError:
            break
    connection.close()
"""

ANSWERS = {
    "nothing": "time.sleep(60)",
    "garbage": "connection.sendall(bytes(range(256)) * 64)",
    "a hang-up": "pass",
    "half an answer": 'connection.sendall(ok + b"Content-Length: 50\\r\\n\\r\\n{\\"id\\"")',
    "no JSON": 'connection.sendall(ok + b"Content-Length: 4\\r\\n\\r\\n\\xff{[x")',
    "another JSON": 'connection.sendall(ok + b"Content-Length: 13\\r\\n\\r\\n{\\"state\\": 17}")',
    "an unknown state": 'connection.sendall(ok + b"Content-Length: 16\\r\\n\\r\\n{\\"state\\": \\"Odd\\"}")',
    "a gigabyte promised": 'connection.sendall(ok + b"Content-Length: 999999999\\r\\n\\r\\n" + bytes(9999999))',
    "a head without end": 'connection.sendall(ok + b"" + b"X: y\\r\\n" * 9999999)',
    "a byte at a time": '[(connection.sendall(b"H"), time.sleep(0.02)) for _ in range(9999)]',
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_vmm_that_answers_anything_is_unresponsive_in_time_and_little_memory_and_is_replaced(
    real: RealBench, answer: str
) -> None:
    fake = real.folder / "fake"
    fake.write_text(FAKE.format(python=sys.executable, answer=ANSWERS[answer]), encoding="utf-8")
    fake.chmod(0o700)
    impostor = FirecrackerDriver(fake, state_dir=real.folder / "state", run_dir=real.folder / "run", answer_s=ANSWER_S)
    impostor.start(RECORD, deadline_s=DEADLINE_S)
    tracemalloc.start()
    began_s = time.monotonic()
    facts = real.driver.observe(RECORD)
    took_s = time.monotonic() - began_s
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (facts.status, facts.drift) == ("unresponsive", ())
    assert took_s < 2 * ANSWER_S + 10, "each of these would go on for a minute and more"
    assert peak_bytes < 4 << 20
    real.driver.start(RECORD, deadline_s=DEADLINE_S)
    assert real.driver.observe(RECORD).status == "running"
    assert len(real.all_pids()) == 1
    assert Path(f"/proc/{real.driver.observe(RECORD).pid}/exe").readlink() == real.binary.resolve()

"""Whatever sits at the other end of a QMP socket, the answer is a value or one of two errors, in time and small."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mikrom_reconcile.host.drivers.connection import QMP
from mikrom_reconcile.host.errors import FaultError, NoAnswerError, UnreachableError
from mikrom_reconcile.times_and_sizes import VMMS
from tests.unit.host.servers import Serve, server

PATIENCE_S = 0.2
GREETING = b'{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}\r\n'
DONE = b'{"return": {}}\r\n'
EVENT = b'{"timestamp": {"seconds": 1}, "event": "RESUME"}\r\n'


class Run(msgspec.Struct):
    status: str


def speaking(*parts: bytes, pause_s: float = 0) -> Serve:
    """A QEMU that says the first part unasked, and each further one when something came."""

    def serve(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_s)
            connection.recv(65536)

    return serve


def connected(path: str, *, pid: int | None = None, patience_s: float = 30) -> QMP:
    return QMP(path, pid=pid or os.getpid(), give_up_at=time.monotonic() + patience_s)


def test_events_may_stand_before_any_answer(own_environment: Path) -> None:
    answer = EVENT * 3 + b'{"return": {"status": "paused", "running": false}}\r\n'
    with server(own_environment, speaking(GREETING, EVENT + DONE, answer)) as path, connected(path) as qmp:
        assert qmp.execute("query-status", Run) == Run("paused")


def test_a_command_goes_over_with_its_arguments(own_environment: Path) -> None:
    heard: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for _ in range(3):
            heard.append(connection.recv(65536))
            connection.sendall(DONE)

    with server(own_environment, serve) as path, connected(path) as qmp:
        assert qmp.execute("cont") == {}
        qmp.execute("send-key", keys=["a"])
    assert heard == [
        b'{"execute":"qmp_capabilities"}\n',
        b'{"execute":"cont"}\n',
        b'{"execute":"send-key","arguments":{"keys":["a"]}}\n',
    ]


def test_a_refusal_is_a_fault_in_one_line(own_environment: Path) -> None:
    refusal = b'{"error": {"class": "GenericError", "desc": "Resetting the\\n Virtual Machine is required"}}\r\n'
    with (
        server(own_environment, speaking(GREETING, DONE, refusal)) as path,
        connected(path) as qmp,
        pytest.raises(FaultError, match=r"^Resetting the Virtual Machine is required$"),
    ):
        qmp.execute("cont")


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"HTTP/1.1 400 \r\n\r\n",),
        (DONE,),
        (GREETING,),
        (GREETING, b"\xff\r\n"),
        (GREETING, b"[" * 100_000 + b"\r\n"),
        (GREETING, DONE, b"{}\r\n"),
        (GREETING, DONE, b'{"return": 5}\r\n'),
        (GREETING, DONE, b'{"return": {"status": 5}}\r\n'),
        (GREETING, DONE, b"x" * (2 * VMMS.answer_bytes)),
    ],
)
def test_what_is_not_an_answer_is_no_answer(own_environment: Path, parts: tuple[bytes, ...]) -> None:
    with (
        server(own_environment, speaking(*parts)) as path,
        pytest.raises(NoAnswerError),
        connected(path, patience_s=1) as qmp,
    ):
        qmp.execute("query-status", Run)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200))
def test_noise_is_a_value_or_no_answer(own_environment: Path, noise: bytes) -> None:
    parts = (GREETING, DONE, noise + b"\n")
    with (
        server(own_environment, speaking(*parts)) as path,
        suppress(NoAnswerError, FaultError),
        connected(path, patience_s=PATIENCE_S) as qmp,
    ):
        qmp.execute("cont")


@pytest.mark.parametrize("answer", [b"", EVENT])
def test_a_qemu_that_is_silent_or_talks_of_other_things_is_left_at_the_deadline(
    own_environment: Path, answer: bytes
) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING + DONE)
        while answer:
            connection.sendall(answer)
            time.sleep(0.01)
        while connection.recv(65536):
            pass

    with server(own_environment, serve) as path, connected(path, patience_s=PATIENCE_S) as qmp:
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match="in time"):
            qmp.execute("cont")
        assert time.monotonic() - began < 30


def test_who_is_another_process_is_not_greeted(own_environment: Path) -> None:
    with server(own_environment, speaking(GREETING)) as path, pytest.raises(UnreachableError, match="served by pid"):
        connected(path, pid=1)


def test_a_queue_that_is_full_is_waited_for(own_environment: Path) -> None:
    path = own_environment / "s"
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(str(path))
        listening.listen(0)
        first.connect(str(path))
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match="in time"):
            connected(str(path), patience_s=PATIENCE_S)
        assert time.monotonic() - began >= PATIENCE_S

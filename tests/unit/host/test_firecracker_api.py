"""Whatever sits at the other end of an API socket, the answer is a value or one of two errors, in time and small."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from mikrom_reconcile.host.drivers.connection import FirecrackerAPI
from mikrom_reconcile.host.errors import FaultError, NoAnswerError, UnreachableError
from mikrom_reconcile.times_and_sizes import VMMS
from tests.unit.host.servers import Serve, answering, server

PATIENCE_S = 0.2


class State(msgspec.Struct):
    state: str


def connected(path: str, *, pid: int | None = None, patience_s: float = 30) -> FirecrackerAPI:
    return FirecrackerAPI(path, pid=pid or os.getpid(), give_up_at=time.monotonic() + patience_s)


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def http(status: int, body: bytes = b"", length: int | None = None) -> bytes:
    return b"HTTP/1.1 %d \r\nContent-Length: %d\r\n\r\n%s" % (status, len(body) if length is None else length, body)


def test_an_answer_may_come_in_any_pieces(own_environment: Path) -> None:
    whole = http(200, b'{"id":"a","state":"Running"}')
    with server(own_environment, answering(*(bytes([byte]) for byte in whole))) as path, connected(path) as api:
        assert api.get("/", State) == State("Running")


def test_two_requests_go_over_one_connection(own_environment: Path) -> None:
    def serve(connection: socket.socket) -> None:
        for state in (b"Not started", b"Running"):
            connection.recv(65536)
            connection.sendall(http(200, b'{"state":"%s"}' % state))

    with server(own_environment, serve) as path, connected(path) as api:
        assert [api.get("/", State).state for _ in range(2)] == ["Not started", "Running"]


def test_answers_to_what_was_sent_at_once_are_told_apart(own_environment: Path) -> None:
    fault = http(400, b'{"fault_message":"no"}')
    with server(own_environment, answering(http(204) + fault, http(200, b"{}"))) as path, connected(path) as api:
        api.send("PUT", ("/a", {}), ("/b", {}))
        api.check("PUT", "/a")
        with pytest.raises(FaultError, match="no"):
            api.check("PUT", "/b")
        assert api.told("/", dict) == {}


def test_a_refusal_is_a_fault_in_one_line(own_environment: Path) -> None:
    answer = http(400, b'{"fault_message":"Boot source error:\\n  no kernel"}')
    with (
        server(own_environment, answering(answer)) as path,
        connected(path) as api,
        pytest.raises(FaultError, match=r"^Boot source error: no kernel$"),
    ):
        api.put("/boot-source", {})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 100,
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc \r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 5",
        http(200, b"{}", length=900_000_000),
        http(200, b"{}"),
        http(200, b"[" * 100_000),
        http(200, b"\xff\xfe"),
        http(204),
        http(503, b"Too many open connections"),
        b"HTTP/1.1 200 " + b"x" * (2 * VMMS.answer_bytes),
        http(200, b" " * (2 * VMMS.answer_bytes)),
    ],
)
def test_what_is_not_an_answer_is_no_answer(own_environment: Path, answer: bytes) -> None:
    with (
        server(own_environment, answering(answer)) as path,
        connected(path) as api,
        pytest.raises(NoAnswerError),
    ):
        api.get("/", State)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200), status=st.sampled_from([b"200", b"204", b"400", b"500", b"x"]))
def test_noise_is_a_value_or_no_answer(own_environment: Path, body: bytes, status: bytes) -> None:
    with (
        server(own_environment, answering(b"HTTP/1.1 " + status + b" \r\n" + body)) as path,
        connected(path) as api,
        suppress(NoAnswerError, FaultError),
    ):
        api.put("/", {})


@pytest.mark.parametrize("serve", [silent, answering(*[b"H"] * 6000, pause_s=0.01)])
def test_a_server_that_is_silent_or_trickles_is_left_at_the_deadline(own_environment: Path, serve: Serve) -> None:
    with server(own_environment, serve) as path, connected(path, patience_s=PATIENCE_S) as api:
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match="in time"):
            api.get("/", State)
        assert time.monotonic() - began < 30


def test_nobody_there_a_stale_socket_and_somebody_else_are_unreachable(own_environment: Path) -> None:
    with pytest.raises(UnreachableError, match="No such file"):
        connected(str(own_environment / "s"))
    with server(own_environment, answering()) as path, pytest.raises(UnreachableError, match=f"pid {os.getpid()}"):
        connected(path, pid=1)
    with pytest.raises(UnreachableError, match="Connection refused"):
        connected(str(own_environment / "s"))


def test_a_full_queue_is_no_answer(own_environment: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(own_environment / "s"))
        listening.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(own_environment / "s"))
            with pytest.raises(NoAnswerError):
                connected(str(own_environment / "s"), patience_s=PATIENCE_S)

"""What is said over a VMM's API socket: HTTP to a Firecracker, QMP to a QEMU. Small on purpose instead of
`http.client`: it costs a ninth of the CPU per call, holds a deadline over a whole exchange (http.client starts anew
with each byte that trickles in) and never takes more memory than an answer has.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from mikrom_reconcile.core.model.encoding import UNREADABLE, ready
from mikrom_reconcile.host.errors import FaultError, NoAnswerError, UnreachableError
from mikrom_reconcile.system import processes
from mikrom_reconcile.times_and_sizes import VMMS

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid
_HEAD_END = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r", re.IGNORECASE)

T = TypeVar("T")


class Connection:
    """A connection that is known to end at the process `pid`, be it any for None. All I/O ends at `give_up_at`
    (monotonic clock). Raises UnreachableError and NoAnswerError, each with a cause in words, and OSError for what this
    process lacks (descriptors, memory, permission), which says nothing about the VMM.
    """

    _received = b""  # and belongs to the next answer

    def __init__(self, path: str, *, pid: int | None, give_up_at: float) -> None:
        self._give_up_at = give_up_at
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path)
            self.pid = self._checked_peer(pid)
            self._greet()
        except BaseException:
            self._socket.close()
            raise

    @classmethod
    def first(cls, path: Path, process: processes.Identity, give_up_at: float) -> Self:
        """A connection to a VMM that was just started, as soon as it listens."""
        while True:
            try:
                return cls(str(path), pid=process.pid, give_up_at=give_up_at)
            except UnreachableError as error:
                if time.monotonic() > give_up_at or not processes.is_alive(process):
                    raise NoAnswerError(f"it never listened: {error}") from error
            time.sleep(VMMS.poll_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def _checked_peer(self, pid: int | None) -> int:
        peer: int = _PEER.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        if pid not in {None, peer}:
            raise UnreachableError(f"its socket is served by pid {peer}")
        return peer

    def _greet(self) -> None:
        """What comes first in the VMM's protocol."""

    def _connect(self, path: str) -> None:
        while True:
            try:
                with self._in_time("it did not take the connection"):
                    return self._socket.connect(path)
            except BlockingIOError:  # its queue is full, as a QEMU's is with two clients
                time.sleep(VMMS.full_queue_s)
            except FileNotFoundError as error:
                raise UnreachableError(str(error.strerror)) from error

    def _send(self, request: bytes) -> None:
        with self._in_time("it closed the connection"):
            self._socket.sendall(request)

    def _receive(self, size_so_far: int) -> bytes:
        """What came next; never empty."""
        if size_so_far > VMMS.answer_bytes:
            raise NoAnswerError(f"its answer has more than {VMMS.answer_bytes} bytes")
        with self._in_time("it closed the connection"):
            if part := self._socket.recv(65536):
                return part
        raise NoAnswerError("it closed the connection")

    @contextmanager
    def _in_time(self, if_closed: str) -> Iterator[None]:
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            raise NoAnswerError("it did not answer in time")
        self._socket.settimeout(left_s)
        try:
            yield
        except ConnectionRefusedError as error:
            raise UnreachableError(str(error.strerror)) from error
        except TimeoutError as error:
            raise NoAnswerError("it did not answer in time") from error
        except ConnectionError as error:
            raise NoAnswerError(if_closed) from error


class FirecrackerAPI(Connection):
    """A connection to a Firecracker, which answers requests in their order: several may be sent at once."""

    def get(self, path: str, answer: type[T]) -> T:
        """What stands at `path`, as the type `answer`."""
        self.ask(path)
        return self.told(path, answer)

    def ask(self, *paths: str) -> None:
        """Send GETs, whose answers `told` takes in their order."""
        self._send("".join(f"GET {path} HTTP/1.1\r\n\r\n" for path in paths).encode())

    def told(self, path: str, answer: type[T]) -> T:
        """The next answer."""
        status, body = self._response()
        if status != 200:
            raise NoAnswerError(f"GET {path} was answered with status {status}")
        return _decoded(body, answer)

    def _change(self, method: str, path: str, content: object) -> None:
        """Put `content` at `path`, or change what stands there. Raises FaultError when Firecracker refuses it."""
        self.send(method, (path, content))
        self.check(method, path)

    put, patch = partialmethod(_change, "PUT"), partialmethod(_change, "PATCH")

    def send(self, method: str, *requests: tuple[str, object]) -> None:
        """Send changes, whose answers `check` takes in their order."""
        self._send(b"".join(_request(method, path, content) for path, content in requests))

    def check(self, method: str, path: str) -> None:
        """Raise FaultError where Firecracker has refused the next change."""
        status, answer = self._response()
        if status == 400:
            raise FaultError(" ".join(_decoded(answer, _Fault).fault_message.split()))
        if status != 204:
            raise NoAnswerError(f"{method} {path} was answered with status {status}")

    def _response(self) -> tuple[int, bytes]:
        received = self._received
        while (end := received.find(_HEAD_END)) < 0:
            received += self._receive(len(received))
        head, body = received[: end + 2], received[end + len(_HEAD_END) :]
        if (status := _STATUS.match(head)) is None:
            raise NoAnswerError("its answer is not HTTP")
        length = _CONTENT_LENGTH.search(head)
        size = int(length[1]) if length else 0
        while len(body) < size:
            body += self._receive(len(body))
        self._received = body[size:]
        return int(status[1]), body[:size]


def _request(method: str, path: str, content: object) -> bytes:
    body = msgspec.json.encode(content)
    head = f"{method} {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Fault(msgspec.Struct):
    fault_message: str


class QMP(Connection):
    """A connection to a QEMU, past its greeting: lines of JSON, in which events may stand before an answer. A QEMU
    serves one connection at a time; the others wait for their greeting.
    """

    def execute(self, command: str, answer: type[T] | Any = Any, **arguments: Any) -> Any:
        """What `command` returns, as the type `answer`. Raises FaultError when QEMU refuses it."""
        asked = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._send(msgspec.json.encode(asked) + b"\n")
        while (message := self._message()).event is not None:
            pass
        if message.error is not None:
            raise FaultError(" ".join(message.error.get("desc", "").split()))
        if not message.answer:
            raise NoAnswerError(f"it gave {command} no answer")
        return _decoded(bytes(message.answer), answer)

    def _greet(self) -> None:
        if not self._message().greeting:
            raise NoAnswerError("it does not greet as a QEMU does")
        self.execute("qmp_capabilities")

    def _message(self) -> _Message:
        while b"\n" not in self._received:
            self._received += self._receive(len(self._received))
        line, _, self._received = self._received.partition(b"\n")
        return _decoded(line, _Message)


class _Message(msgspec.Struct, rename={"answer": "return", "greeting": "QMP"}):
    answer: msgspec.Raw = msgspec.Raw()
    error: dict[str, str] | None = None
    event: str | None = None
    greeting: msgspec.Raw = msgspec.Raw()


def _decoded(content: bytes, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=ready(answer))
    except UNREADABLE as error:
        raise NoAnswerError(f"its answer is not what such a VMM says: {error}") from error

"""One connection to one Firecracker's API socket. It must not decide what an answer means for a VM.

Small on purpose instead of `http.client`: it costs a ninth of the CPU per call, holds a deadline over a whole
exchange (http.client starts anew with each byte that trickles in) and never takes more memory than an answer has.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from typing import Self, TypeVar

import msgspec

from mikrom_reconcile.host.drivers.failures import FaultError, NoAnswerError, UnreachableError

MAX_ANSWER_BYTES = 1 << 18
"""The largest answer is the configuration of a VM with many drives: some kilobytes."""

_HEAD_END = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r", re.IGNORECASE)
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

T = TypeVar("T")


class _Fault(msgspec.Struct):
    fault_message: str


class Api:
    """A connection that is known to end at the process `pid`. All I/O ends at `give_up_at` (monotonic clock).

    Raises UnreachableError and NoAnswerError, each with a cause in words, and OSError for what this process
    lacks (descriptors, memory, permission), which says nothing about the VMM.
    """

    def __init__(self, path: str, *, pid: int, give_up_at: float) -> None:
        self._give_up_at = give_up_at
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connect(path, pid)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def get(self, path: str, answer: type[T]) -> T:
        """What stands at `path`, as the type `answer`."""
        status, body = self._exchange(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        if status != 200:
            raise NoAnswerError(f"GET {path} was answered with status {status}")
        return _decoded(body, answer)

    def put(self, path: str, content: object) -> None:
        """Put `content` at `path`. Raises FaultError when Firecracker refuses it."""
        self._send("PUT", path, content)

    def patch(self, path: str, content: object) -> None:
        """Change what stands at `path`. Raises FaultError when Firecracker refuses it."""
        self._send("PATCH", path, content)

    def _send(self, method: str, path: str, content: object) -> None:
        body = msgspec.json.encode(content)
        head = f"{method} {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        status, answer = self._exchange(head.encode() + body)
        if status == 400:
            raise FaultError(" ".join(_decoded(answer, _Fault).fault_message.split()))
        if status != 204:
            raise NoAnswerError(f"{method} {path} was answered with status {status}")

    def _connect(self, path: str, pid: int) -> None:
        self._limit()
        try:
            self._socket.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise UnreachableError(str(error.strerror)) from error
        except (TimeoutError, BlockingIOError, ConnectionError) as error:  # BlockingIOError: its queue is full
            raise NoAnswerError("it did not take the connection") from error
        peer = _PEER.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        if peer != pid:
            raise UnreachableError(f"its socket is served by pid {peer}")

    def _exchange(self, request: bytes) -> tuple[int, bytes]:
        try:
            self._limit()
            self._socket.sendall(request)
            received = b""
            while (end := received.find(_HEAD_END)) < 0:
                received += self._receive(len(received))
            status, length = _read_head(received[: end + 2])
            body = received[end + len(_HEAD_END) :]
            while len(body) < length:
                body += self._receive(len(body))
        except TimeoutError as error:
            raise NoAnswerError("it did not answer in time") from error
        except ConnectionError as error:
            raise NoAnswerError("it closed the connection") from error
        return status, body

    def _receive(self, size_so_far: int) -> bytes:
        if size_so_far > MAX_ANSWER_BYTES:
            raise NoAnswerError(f"its answer has more than {MAX_ANSWER_BYTES} bytes")
        self._limit()
        part = self._socket.recv(65536)
        if not part:
            raise NoAnswerError("it closed the connection")
        return part

    def _limit(self) -> None:
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            raise NoAnswerError("it did not answer in time")
        self._socket.settimeout(left_s)


def _read_head(head: bytes) -> tuple[int, int]:
    """Status and length of the body from a response's head."""
    status = _STATUS.match(head)
    if status is None:
        raise NoAnswerError("its answer is not HTTP")
    length = _CONTENT_LENGTH.search(head)
    return int(status[1]), int(length[1]) if length else 0


def _decoded(body: bytes, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NoAnswerError(f"its answer is not what Firecracker says: {error}") from error

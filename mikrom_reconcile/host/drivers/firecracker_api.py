"""What is said over a Firecracker's API socket: HTTP.

Small on purpose instead of `http.client`: it costs a ninth of the CPU per call, holds a deadline over a whole
exchange (http.client starts anew with each byte that trickles in) and never takes more memory than an answer has.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from mikrom_reconcile.host.drivers.connection import Connection, decoded
from mikrom_reconcile.host.drivers.translate_errors import FaultError, NoAnswerError

_HEAD_END = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d{1,9})\r", re.IGNORECASE)

T = TypeVar("T")


class _Fault(msgspec.Struct):
    fault_message: str


class Api(Connection):
    """A connection to a Firecracker."""

    def get(self, path: str, answer: type[T]) -> T:
        """What stands at `path`, as the type `answer`."""
        status, body = self._exchange(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        if status != 200:
            raise NoAnswerError(f"GET {path} was answered with status {status}")
        return decoded(body, answer)

    def put(self, path: str, content: object) -> None:
        """Put `content` at `path`. Raises FaultError when Firecracker refuses it."""
        self._change("PUT", path, content)

    def patch(self, path: str, content: object) -> None:
        """Change what stands at `path`. Raises FaultError when Firecracker refuses it."""
        self._change("PATCH", path, content)

    def _change(self, method: str, path: str, content: object) -> None:
        body = msgspec.json.encode(content)
        head = f"{method} {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        status, answer = self._exchange(head.encode() + body)
        if status == 400:
            raise FaultError(" ".join(decoded(answer, _Fault).fault_message.split()))
        if status != 204:
            raise NoAnswerError(f"{method} {path} was answered with status {status}")

    def _exchange(self, request: bytes) -> tuple[int, bytes]:
        self._send(request)
        received = b""
        while (end := received.find(_HEAD_END)) < 0:
            received += self._receive(len(received))
        status, length = _read_head(received[: end + 2])
        body = received[end + len(_HEAD_END) :]
        while len(body) < length:
            body += self._receive(len(body))
        return status, body


def _read_head(head: bytes) -> tuple[int, int]:
    """Status and length of the body from a response's head."""
    status = _STATUS.match(head)
    if status is None:
        raise NoAnswerError("its answer is not HTTP")
    length = _CONTENT_LENGTH.search(head)
    return int(status[1]), int(length[1]) if length else 0

"""One connection to one VMM's API socket, whatever is spoken over it. It must not decide what an answer means."""

from __future__ import annotations

import socket
import struct
import time
from typing import Self, TypeVar

import msgspec

from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.host.drivers.translate_errors import NoAnswerError, UnreachableError
from mikrom_reconcile.limits import VMMS

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid

T = TypeVar("T")


class Connection:
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

    def _connect(self, path: str, pid: int) -> None:
        while not self._is_taken(path):
            time.sleep(VMMS.full_queue_s)
        peer = _PEER.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
        if peer != pid:
            raise UnreachableError(f"its socket is served by pid {peer}")

    def _is_taken(self, path: str) -> bool:
        """Whether the socket took the connection; False: its queue is full, as a QEMU's is with two clients."""
        try:
            self._limit()
            self._socket.connect(path)
        except BlockingIOError:
            return False
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise UnreachableError(str(error.strerror)) from error
        except (TimeoutError, ConnectionError) as error:
            raise NoAnswerError("it did not take the connection") from error
        return True

    def _send(self, request: bytes) -> None:
        try:
            self._limit()
            self._socket.sendall(request)
        except TimeoutError as error:
            raise NoAnswerError("it did not answer in time") from error
        except ConnectionError as error:
            raise NoAnswerError("it closed the connection") from error

    def _receive(self, size_so_far: int) -> bytes:
        """What came next; never empty."""
        if size_so_far > VMMS.answer_bytes:
            raise NoAnswerError(f"its answer has more than {VMMS.answer_bytes} bytes")
        try:
            self._limit()
            part = self._socket.recv(65536)
        except TimeoutError as error:
            raise NoAnswerError("it did not answer in time") from error
        except ConnectionError as error:
            raise NoAnswerError("it closed the connection") from error
        if not part:
            raise NoAnswerError("it closed the connection")
        return part

    def _limit(self) -> None:
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            raise NoAnswerError("it did not answer in time")
        self._socket.settimeout(left_s)


def decoded(content: bytes, answer: type[T]) -> T:
    """`content` as the type `answer`. Raises NoAnswerError."""
    try:
        return msgspec.json.decode(content, type=ready(answer))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NoAnswerError(f"its answer is not what such a VMM says: {error}") from error

"""Sockets that are read until a deadline: their own time-outs begin anew with each byte that trickles in."""

from __future__ import annotations

import io
import math
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket


class Limited:
    """A socket for `http.client`, of which nothing is read or sent beyond `give_up_at` (monotonic clock), and which
    may be silent for `idle_s` at most. Raises TimeoutError.
    """

    def __init__(self, connected: socket.socket, give_up_at: float, *, idle_s: float = math.inf) -> None:
        self._socket = connected
        self._give_up_at = give_up_at
        self._idle_s = idle_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def limit(self) -> None:
        """Let the next call end in time."""
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out: it answers too slowly")
        self._socket.settimeout(min(left_s, self._idle_s))

    def sendall(self, content: bytes) -> None:
        """As a socket does."""
        self.limit()
        self._socket.sendall(content)

    def makefile(self, mode: str) -> io.BufferedReader:
        """What there is to read."""
        del mode  # http.client only reads
        return io.BufferedReader(_Reader(self, self._socket.makefile("rb", buffering=0)))


class _Reader(io.RawIOBase):
    def __init__(self, limited: Limited, raw: Any) -> None:
        self._limited = limited
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._limited.limit()
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()  # and with it the socket, which http.client has closed before
        super().close()

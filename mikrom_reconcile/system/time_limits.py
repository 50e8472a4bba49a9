"""The clock, and what is ended in time though it depends on others: sockets that trickle, patterns that backtrack."""

import io
import math
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

from mikrom_reconcile.times_and_sizes import CHECKS


class Clock:
    """The real time. Tests have a subclass that holds it still."""

    def now(self) -> datetime:
        """Aware UTC, for people; it may jump."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that only ever grow, for deadlines and durations."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class LimitedSocket:
    """A socket for `http.client`, not used beyond `give_up_at` nor silent for `idle_s`. Raises TimeoutError."""

    def __init__(self, connected: Any, give_up_at: float, *, idle_s: float = math.inf) -> None:
        self._socket, self._give_up_at, self._idle_s = connected, give_up_at, idle_s

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
    def __init__(self, limited: LimitedSocket, raw: Any) -> None:
        self._limited, self._raw = limited, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._limited.limit()
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()  # and with it the socket, which http.client has closed before
        super().close()


_REPEATING = frozenset("*+?{")

_PROGRAM = f"""
import re, signal, sys
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
found = re.search(sys.argv[1], sys.stdin.buffer.read().decode(errors="replace"))
sys.stdout.write("+" + found.group(0)[:{CHECKS.found_characters}] if found else "-")
"""


def first_match(pattern: str, text: bytes, *, limit_s: float) -> str | None:
    """What is found first, up to 80 characters; None for nothing. Raises TimeoutError after `limit_s`. Python's engine
    cannot be told to stop: what repeats is searched in a process of its own, whose alarm ends it.
    """
    if not _REPEATING & set(pattern):
        found = re.search(pattern, text.decode(errors="replace"))
        return found[0][: CHECKS.found_characters] if found else None
    import subprocess  # noqa: PLC0415 - 5 ms that only such a pattern costs

    argv = (sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM, pattern, str(limit_s))
    within_s = limit_s + CHECKS.search_start_s
    try:
        search = subprocess.run(argv, input=text, capture_output=True, timeout=within_s, check=True, env={})
    except subprocess.SubprocessError as error:
        message = f"{pattern!r} was not searched for within {limit_s:g} s: write it with fewer repetitions"
        raise TimeoutError(message) from error
    answer = search.stdout.decode(errors="replace")
    return answer[1:] if answer.startswith("+") else None

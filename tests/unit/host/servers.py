"""Servers at the other end of a UNIX socket, which say what a test wants."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Serve = Callable[[socket.socket], None]


@contextmanager
def server(folder: Path, serve: Serve) -> Iterator[str]:
    """A server of this process that deals with one connection."""
    path = folder / "s"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def run() -> None:
            with suppress(OSError), listening.accept()[0] as connection:
                serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield str(path)
        finally:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def answering(*parts: bytes, pause_s: float = 0) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        for part in parts:
            connection.sendall(part)
            time.sleep(pause_s)

    return serve

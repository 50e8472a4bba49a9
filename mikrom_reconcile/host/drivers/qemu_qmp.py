"""What is said over a QEMU's QMP socket: lines of JSON, in which events may stand before an answer.

A QEMU serves one connection at a time; the others wait for their greeting.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from mikrom_reconcile.host.drivers.connection import Connection, decoded
from mikrom_reconcile.host.drivers.translate_errors import FaultError, NoAnswerError

T = TypeVar("T")


class _Error(msgspec.Struct):
    desc: str


class _Message(msgspec.Struct, rename={"answer": "return", "greeting": "QMP"}):
    answer: msgspec.Raw = msgspec.Raw()
    error: _Error | None = None
    event: str | None = None
    greeting: msgspec.Raw = msgspec.Raw()


class Qmp(Connection):
    """A connection to a QEMU, past its greeting."""

    def __init__(self, path: str, *, pid: int, give_up_at: float) -> None:
        super().__init__(path, pid=pid, give_up_at=give_up_at)
        self._received = b""
        try:
            self._greet()
        except BaseException:
            self._socket.close()
            raise

    def execute(self, command: str, answer: type[T] | Any = Any, **arguments: Any) -> Any:
        """What `command` returns, as the type `answer`. Raises FaultError when QEMU refuses it."""
        asked = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._send(msgspec.json.encode(asked) + b"\n")
        while (message := self._message()).event is not None:
            pass
        if message.error is not None:
            raise FaultError(" ".join(message.error.desc.split()))
        if not message.answer:
            raise NoAnswerError(f"it gave {command} no answer")
        return decoded(bytes(message.answer), answer)

    def _greet(self) -> None:
        if not self._message().greeting:
            raise NoAnswerError("it does not greet as a QEMU does")
        self.execute("qmp_capabilities")

    def _message(self) -> _Message:
        while b"\n" not in self._received:
            self._received += self._receive(len(self._received))
        line, _, self._received = self._received.partition(b"\n")
        return decoded(line, _Message)

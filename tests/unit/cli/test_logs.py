"""A console that is followed: nothing twice, nothing lost, nothing that a terminal obeys, and a quiet end."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mikrom_reconcile.cli import get as module
from mikrom_reconcile.cli.get import follow_console
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import Console
from mikrom_reconcile.times_and_sizes import OUTPUT


class Talking:
    """Hosts whose VM says one part per look, or cannot be reached, until somebody presses Ctrl-C."""

    def __init__(self, *parts: bytes | None) -> None:
        self._parts = list(parts)
        self._end = 100
        self.asked: list[int | None] = []

    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        self.asked.append(after)
        if not self._parts:
            raise KeyboardInterrupt
        part = self._parts.pop(0)
        if part is None:
            raise MikromError("hv01: no worker answers")
        self._end += len(part)
        return Console(content=part, end=self._end)


def followed(monkeypatch: pytest.MonkeyPatch, hosts: Talking) -> int:
    monkeypatch.setattr(module, "OUTPUT", replace(OUTPUT, follow_poll_s=0))
    return follow_console(hosts, "hv01", "web-000", 100)  # type: ignore[arg-type]


def test_it_goes_on_where_it_ended_and_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = Talking(b"one\ntw", b"o\n", b"no end")
    assert followed(monkeypatch, hosts) == 130
    assert hosts.asked == [100, 106, 108, 114]
    assert capsys.readouterr() == ("one\ntwo\n", "")


def test_what_a_terminal_would_obey_is_taken_out_though_it_comes_in_halves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    followed(monkeypatch, Talking(b"a\x1b]0;ti", b"tle\x07b \xc3", b"\xa9\n", b"prompt$ ", b""))
    assert capsys.readouterr().out == "ab \u00e9\nprompt$ "


def test_a_host_that_cannot_be_reached_is_told_once_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    followed(monkeypatch, Talking(None, None, b"back\n"))
    out, told = capsys.readouterr()
    assert out == "back\n"
    assert told.count("still trying") == 1

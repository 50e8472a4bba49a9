"""One service process: started, watched, started again with growing pauses, and ended.

A child dies with its parent (`setpriv --pdeathsig`, which follows the thread that started it: call from the main
thread only) and has a session of its own, so that a Ctrl-C in the terminal reaches the parent alone. It must not know
what the services are.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from mikrom_reconcile.system.folders import make_folder

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""Who has run this long begins again with the first pause."""

LARGEST_LOG_BYTES = 16 * 1024 * 1024
"""A longer log goes to `<log>.1`, in place of what was there: a service has twice this at most."""

_LAST_BYTES = 4096


class Child:
    """A service that is kept running. `is_ready` is asked with its pid until it says yes, after each start.

    Without a `log` it is no service: it runs once, and says what it says where its parent does.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        log: Path | None = None,
        is_ready: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.name = name
        self.ready = False
        self._argv = ["setpriv", "--pdeathsig", "TERM", "--", *argv]
        self._env = env
        self._log = log
        self._is_ready = is_ready
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        if log is not None:
            make_folder(log.parent)
            log.write_bytes(b"")
            log.chmod(0o600)

    def look(self) -> str | None:
        """Start it when it is time, and what there is to tell about it, if anything."""
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._start()
            return None
        code = self._process.poll()
        if code is not None:
            return self._ended(code)
        if self._log is not None:
            _cap(self._log)
        if not self.ready and self._is_ready(self._process.pid):
            self.ready = True
            return f"{self.name}: ready after {time.monotonic() - self._started_at:.1f} s"
        return None

    def terminate(self) -> None:
        """Ask it to end. Never SIGINT: Celery answers that with an exit code of 1."""
        self._start_at = float("inf")
        if self._process is not None:
            self._process.terminate()

    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """End it and its session now."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _start(self) -> None:
        with self._log.open("ab") if self._log else nullcontext() as log:
            self._process = subprocess.Popen(
                self._argv,
                env=dict(self._env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started_at = time.monotonic()

    def _ended(self, code: int) -> str:
        now = time.monotonic()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        self._process, self.ready = None, False
        if self._log is None:
            self._start_at = float("inf")
            return f"{self.name}: ended ({how})"
        if now - self._started_at > STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        pause_s, self._start_at = self._pause_s, now + self._pause_s
        self._pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return f"{self.name}: ended ({how}), starts again in {pause_s:g} s; {_last_line(self._log)}"


def _cap(log: Path) -> None:
    """Begin a log anew that has become too long. Copied, not renamed: its service has it open, to append to it."""
    if log.stat().st_size > LARGEST_LOG_BYTES:
        shutil.copy(log, f"{log}.1")
        os.truncate(log, 0)


def _last_line(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LAST_BYTES))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return f"{log} ends with: {lines[-1]}" if lines else f"{log} is empty"


def end_all(children: Sequence[Child], *, within_s: float) -> None:
    """End all of them together; what still runs after `within_s` is killed."""
    for child in children:
        child.terminate()
    until = time.monotonic() + within_s
    while time.monotonic() < until and not all(child.has_ended() for child in children):
        time.sleep(0.05)
    for child in children:
        child.kill()

"""A private Redis and workers of a fleet as processes of a test, with simulated microVMs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from redis import Redis, RedisError

from mikrom_reconcile.dispatch.transport.broker import Keys, client_of
from mikrom_reconcile.settings import Settings, load

ROOT = Path(__file__).parent.parent
PASSWORD = "never-in-an-argument"
READY_S = 280.0
"""Much more than anything takes: what is waited for comes late on a busy machine, and is not missed by that."""

KEYS = Keys("mikrom:queue")


def wait_until(holds: Callable[[], object], what: str, *, within_s: float = READY_S) -> None:
    began_s = time.monotonic()
    while not holds():
        waited_s = time.monotonic() - began_s
        assert waited_s < within_s, f"waited {within_s} s for {what}"
        time.sleep(min(0.02 + waited_s / 20, 0.2))  # to ask costs more than what comes late is missed


def assert_once_per_interval(ticks: Callable[[], int], *, interval_s: float) -> None:
    """Judge four ticks: of two Beats that do not know each other they come within two intervals."""
    began, before = time.monotonic(), ticks()
    wait_until(lambda: ticks() >= before + 4, "four ticks")
    found = ticks() - before
    assert found <= (time.monotonic() - began) / (interval_s - 0.2) + 1, "each keeps the others away for so long"


class Fleet:
    """One Redis on a socket file, and every process that was started beside it.

    With `listen`, lines of its configuration, Redis is reached by `url` instead.
    """

    def __init__(self, folder: Path, *, url: str = "", listen: str = "") -> None:
        self.folder = folder
        self.url = url or f"redis+socket://:{PASSWORD}@{folder}/redis.sock"
        self.redis: Redis = client_of(self.url)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}
        listen = listen or f"unixsocket {folder}/redis.sock\nrequirepass {PASSWORD}"
        (folder / "redis.conf").write_text(f'port 0\n{listen}\nsave ""\ndir {folder}\n')
        self._end = weakref.finalize(self, _end_all, self._processes)  # of those whom nobody closes, too
        try:
            self.start_redis()
        except BaseException:
            self.close()
            raise

    def start_redis(self) -> None:
        """Begin with an empty broker, at first and after `stop_redis`."""
        self._redis = self.run("redis", ["redis-server", str(self.folder / "redis.conf")])
        wait_until(self._answers, "the private Redis")

    def _answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except RedisError:
            return False

    @staticmethod
    def environment_of(folder: Path, url: str, **more: str) -> dict[str, str]:
        """The variables of a process of a fleet, none of this machine's among them."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIKROM_", "CELERY_"))}
        own = {
            "MIKROM_BROKER_URL": url,
            "MIKROM_DRIVER": "simulated",
            "MIKROM_STATE_DIR": f"{folder}/state",
            "MIKROM_RUN_DIR": f"{folder}/run",
        }
        return kept | own | more

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a process of this fleet."""
        return self.environment_of(self.folder, self.url, **more)

    def settings(self, **more: str) -> Settings:
        return load(self.environment(**more))

    def run(self, name: str, argv: list[str], **more: str) -> subprocess.Popen[bytes]:
        """A process whose output goes to `<name>.log`; it is ended with the fleet at the latest."""
        path = self.folder / f"{name}.log"
        with path.open("ab") as log:
            process = subprocess.Popen(
                argv, env=self.environment(**more), stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
        self._processes.append(process)
        self._logs[process.pid] = path
        return process

    def worker(
        self, role: str, *, host: str = "localhost", pool: str = "gevent", app: str = "tests.slow_app", **more: str
    ) -> subprocess.Popen[bytes]:
        """A worker that is ready."""
        argv = [sys.executable, "-m", "celery", "-A", app, "worker", "-P", pool, "-c", "8", "-n", f"{role}@{host}"]
        argv += ["-l", "INFO", "--without-mingle", "--without-gossip"]
        process = self.run(f"{role}-{host}", argv, MIKROM_WORKER_ROLE=role, MIKROM_HOST=host, **more)
        owner = f"host:{host}" if role == "host" else f"control:{host}:{process.pid}"
        self.wait_for(owner, process)
        return process

    def wait_for(self, owner: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until the heartbeat of `process` is seen."""

        def beats() -> bool:
            assert process.poll() is None, f"{owner} ended: {self._logs[process.pid].read_text()}"
            start_id: bytes = self.redis.get(KEYS.heartbeat(owner)) or b""  # type: ignore[assignment]
            return start_id.startswith(f"{process.pid}-".encode())

        wait_until(beats, f"{owner} to be ready")

    def log(self, owner: str) -> str:
        """What a process has said; `owner` as in the keys, or the name given to `run`."""
        name = "-".join(owner.split(":")[:2])
        return (self.folder / f"{name}.log").read_text()

    def stop_redis(self) -> None:
        """Take the broker away."""
        self._redis.kill()
        self._redis.wait()

    @contextmanager
    def silent_redis(self) -> Iterator[None]:
        """The kernel still accepts connections for it, and nobody answers."""
        self._redis.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._redis.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End everything, Redis last."""
        self._end()
        self.redis.close()


def _end_all(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # faketime runs its program as a child
        process.wait()
        for left in (f"faketime_shm_{process.pid}", f"sem.faketime_sem_{process.pid}"):  # a killed one's clock
            Path("/dev/shm", left).unlink(missing_ok=True)

"""A fleet of many simulated hosts below one folder: Redis, specs in git, a control worker, and hosts (`crowd.py`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import rich
from benchmarks.dispatch import Fleet, wait
from benchmarks.rows import used_cpu_s
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.transport.broker import LAST
from mikrom_reconcile.dispatch.transport.shared_state import living, unfinished_runs
from mikrom_reconcile.services import commands

VMS_PER_HOST = 100
CROWDS = 10
FORKS = "2"  # orders under way on each host: those of a thousand hosts share the cores of one machine
START_S = 300.0
LOOK_S, TOLD_EVERY = 0.5, 30
NOTHING = "nothing to do"


class TimeIsUpError(Exception):
    """The minutes of this benchmark are over; in which stage, and how far that was."""


class Cpu(NamedTuple):
    """Seconds of the control workers, of Redis, and of all hosts."""

    control_s: float
    redis_s: float
    hosts_s: float

    def since(self, before: Cpu) -> Cpu:
        """What came since then."""
        return Cpu(*(now_s - then_s for now_s, then_s in zip(self, before, strict=True)))

    def text(self) -> str:
        """For a column."""
        return " + ".join(f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}" for seconds in self) + " s"


class Spent(NamedTuple):
    """Seconds, and of the processors."""

    wall_s: float
    cpu: Cpu


class _Record(msgspec.Struct):
    generation: int


class _Kept(msgspec.Struct):
    record: _Record


def _peak_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


class Site:
    """Redis, a repository of specs, a control worker and hosts, all below one folder."""

    def __init__(self, folder: Path, hosts: int, until_s: float) -> None:
        self.hosts, self.vms, self.until_s = hosts, hosts * VMS_PER_HOST, until_s
        self.stage, self._folder, self._ended_s = "beginning", folder, 0.0
        crowds = min(CROWDS, hosts)
        self.shares = [hosts // crowds + (number < hosts % crowds) for number in range(crowds)]
        self.fleet = Fleet(folder)
        self.app = make_app(self.fleet.settings("control"))
        self._repository, self._commit, self._told = folder / "specs.git", "", ""
        self._git("init", "--quiet", "--bare", "--initial-branch=main", str(self._repository), inside=False)
        self.commit("quiet")
        self.control = self._control_worker()
        self.crowds = [self._crowd(number) for number in range(crowds)]
        wait(lambda: len(living(self.fleet.redis, self.app.keys, "host")) == hosts, f"{hosts} hosts", within_s=START_S)

    def close(self) -> None:
        """End everything."""
        for process in (self.control, *self.crowds, self.fleet.server):
            process.kill()
            process.wait()
        self.app.close()

    def commit(self, word: str) -> None:
        """Have the specs say another word in the boot arguments of each VM."""
        text = "".join(rich.documents(self.vms, self.hosts, word=word))
        blob = self._git("hash-object", "-w", "--stdin", given=text)
        tree = self._git("mktree", given=f"100644 blob {blob}\tspecs.yml\n")
        by = ("-c", "user.name=bench", "-c", "user.email=bench@example.net")
        after = ("-p", self._commit) if self._commit else ()
        self._commit = self._git(*by, "commit-tree", tree, *after, "-m", word)
        self._git("update-ref", "refs/heads/main", self._commit)

    def tick(self, is_enough: Callable[[int], bool] = lambda _: False) -> str:
        """What a scheduled run did; "" once `is_enough` says so of its actions so far. Raises TimeIsUpError."""
        sent = self.app.send_task("mikrom.reconcile", queue=self.app.keys.queue, priority=LAST)
        began_s, looks = time.monotonic(), 0
        try:
            while not sent.ready():
                time.sleep(0.1)
                spent_s = time.monotonic() - began_s
                if spent_s < (looks + 1) * LOOK_S:
                    continue
                looks, done = looks + 1, self._done()
                if looks % TOLD_EVERY == 0:
                    self._tell(f"{done:,} actions, {done / spent_s:.0f}/s")
                if began_s + spent_s > self.until_s:
                    raise TimeIsUpError(f"{self.stage}, {done:,} actions in the last {spent_s:.0f} s")
                if is_enough(done):
                    return ""
            said: str = sent.result["done"]
        finally:
            sent.forget()
        self._tell(said[:200])
        return said

    def converge(self, is_enough: Callable[[int], bool] = lambda _: False) -> Spent:
        """What ticks take until one has nothing to do, which does not count; each ends early when that is enough."""
        before, began_s = self.cpu(), time.monotonic()
        while True:
            spent = Spent(time.monotonic() - began_s, self.cpu().since(before))
            if (said := self.tick(is_enough)) == NOTHING:
                return spent
            time.sleep(0.0 if said and not said.startswith("nothing") else 1.0)

    def _done(self) -> int:
        """Actions of the run that this control worker carries out."""
        runs = unfinished_runs(self.fleet.redis, self.app.keys)
        return next((run.done for run in runs if run.since > self._since), 0)

    def cpu(self) -> Cpu:
        """What was used so far, by killed control workers too."""
        control_s = self._ended_s + used_cpu_s(self.control.pid)
        return Cpu(control_s, used_cpu_s(self.fleet.server.pid), sum(used_cpu_s(it.pid) for it in self.crowds))

    def kill_control(self) -> None:
        """And start another."""
        self._ended_s += used_cpu_s(self.control.pid)
        self.control.kill()
        self.control.wait()
        self.control = self._control_worker()

    def darken(self) -> int:
        """Kill one in ten hosts; how many those are."""
        before = len(living(self.fleet.redis, self.app.keys, "host"))
        self.crowds[-1].kill()
        self.crowds[-1].wait()
        dark = self.shares[-1]
        wait(lambda: len(living(self.fleet.redis, self.app.keys, "host")) == before - dark, "dark hosts", within_s=60)
        return dark

    def lighten(self) -> None:
        """Bring them back."""
        self.crowds[-1] = self._crowd(len(self.crowds) - 1)
        wait(lambda: len(living(self.fleet.redis, self.app.keys, "host")) == self.hosts, "all hosts", within_s=START_S)

    def generations(self) -> dict[str, int]:
        """How often each VM that has a record was acted on."""
        read = msgspec.json.Decoder(_Kept).decode
        return {
            path.parent.name: read(path.read_bytes()).record.generation
            for path in self._folder.glob("hv*/vms/*/record.json")
        }

    def peak_mib(self) -> tuple[float, float, float]:
        """Of the control worker, of Redis, and of the largest process of hosts."""
        redis: dict[str, int] = self.fleet.redis.info("memory")
        return (
            _peak_mib(self.control.pid),
            redis["used_memory_peak"] / 2**20,
            max(_peak_mib(it.pid) for it in self.crowds),
        )

    def _tell(self, text: str) -> None:
        left_min, told = (self.until_s - time.monotonic()) / 60, f"{self.stage}: {text}"
        if told == self._told:
            return
        self._told = told
        print(f"{self.vms:,} VMs, {told}; {left_min:.0f} min left", file=sys.stderr, flush=True)

    def _git(self, *words: str, given: str = "", inside: bool = True) -> str:
        argv = ["git", *((f"--git-dir={self._repository}",) if inside else ()), *words]
        return subprocess.run(argv, input=given, check=True, capture_output=True, text=True).stdout.strip()

    def _control_worker(self) -> subprocess.Popen[bytes]:
        own = {
            "WORKER_ROLE": "control",
            "SPECS": f"git+file://{self._repository}@main",
            "TIMEOUT": "86400",
            "FORKS": FORKS,
        }
        environment = self.fleet.environment("control") | {f"MIKROM_{name}": value for name, value in own.items()}
        argv = commands.command("control", self.fleet.settings("control"))
        argv[argv.index(commands.APP)] = "benchmarks.patient"
        self._since = datetime.now(UTC)
        return self._started("control", argv, environment, b" ready.")

    def _crowd(self, number: int) -> subprocess.Popen[bytes]:
        first = sum(self.shares[:number])
        python = [sys.executable, "-m", "gevent.monkey", "--module", "benchmarks.crowd"]
        apart = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        argv = [*apart, *python, str(self._folder), str(first), str(self.shares[number])]
        return self._started(f"crowd-{number}", argv, self.fleet.environment("crowd"), b"ready.")

    def _started(
        self, name: str, argv: Sequence[str], environment: dict[str, str], word: bytes
    ) -> subprocess.Popen[bytes]:
        path = self._folder / f"{name}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
        wait(lambda: word in path.read_bytes(), name, within_s=START_S)
        return process

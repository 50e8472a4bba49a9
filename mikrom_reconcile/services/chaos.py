"""`mikrom chaos`: faults over real microVMs, Redis, workers and Beat, and whether all is mended after each round. All
of it lives in namespaces of its own (processes, mounts, network) and one folder: nothing else is touched, and what is
left goes with them. The seed decides which faults come when; `judge.py` says whether all is as specified.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from mikrom_reconcile.host.drivers.select import choice_of
from mikrom_reconcile.services import commands
from mikrom_reconcile.services.judge import Judge
from mikrom_reconcile.settings import Settings, load
from mikrom_reconcile.system.files import make_folder, write_whole
from mikrom_reconcile.system.netlink import Netlink
from mikrom_reconcile.times_and_sizes import CHAOS

APART = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


def run_apart(settings: Settings, seed: int, rounds: int) -> int:
    """The exit code of the rounds; after a failure their folder stays. Raises SetupError where microVMs cannot run."""
    firecracker = choice_of(replace(settings, driver="firecracker", jail="off")).binary
    folder = tempfile.mkdtemp(prefix="mk-chaos-")
    own = {"STATE_DIR": f"{folder}/state", "RUN_DIR": f"{folder}/run", "SPECS": f"{folder}/specs.yml"}
    own |= {"DRIVER": "firecracker", "FIRECRACKER": str(firecracker), "RECONCILE_INTERVAL": str(CHAOS.tick_s)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MIKROM_", "CELERY_"))}
    as_root = () if os.geteuid() == 0 else ("--map-root-user",)
    argv = [*APART, *as_root, sys.executable, "-m", __name__, folder, str(seed), str(rounds)]
    failed = False
    try:
        failed = bool(subprocess.call(argv, env=kept | {f"MIKROM_{name}": value for name, value in own.items()}))
    finally:
        if failed:
            sys.stderr.write(f"what there was is in {folder}: state-then/, with log/ of all services\n")
        else:
            shutil.rmtree(folder)
    return int(failed)


class Wire:
    """A TCP proxy between Redis and all its clients: it can be silent, slow, or deaf to what is connected until now."""

    def __init__(self, upstream: Path) -> None:
        self.silent, self.delay_s, self.deaf_until = False, 0.0, 0.0
        self._upstream, self._listener = str(upstream), socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, server = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
            if server.connect_ex(self._upstream):
                client.close()
                server.close()
                continue
            since = time.monotonic()
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(*ends, since), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, since: float) -> None:
        with source, suppress(OSError):
            while content := source.recv(1 << 16):
                time.sleep(self.delay_s)
                while self.silent:
                    time.sleep(0.05)
                if since > self.deaf_until:  # else it is half open: neither end hears of the other again
                    target.sendall(content)
            if since > self.deaf_until:
                target.shutdown(socket.SHUT_RDWR)


class Stage:
    """The services of a fleet of one host, which start again when they have ended, and what faults do to them."""

    def __init__(self, settings: Settings, chance: Random) -> None:
        self.settings, self.chance = settings, chance
        self.wire, self.judge = Wire(settings.run_dir / "redis.sock"), Judge(settings.state_dir, settings.run_dir)
        private = commands.private_settings(settings)
        password = urlsplit(private.broker_url or "").password
        through_wire = replace(private, broker_url=f"redis://:{password}@127.0.0.1:{self.wire.port}")
        children = (commands.redis_of(private), *commands.services_of(through_wire))
        self.children = {child.name: child for child in children if child.name != "flower"}

    def go_on(self, for_s: float) -> None:
        """Let time pass."""
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            for child in self.children.values():
                child.starts_left = 1
                child.keep()
            self.judge.look()
            time.sleep(0.02)

    def any_of(self, found: Sequence[Any]) -> Sequence[Any]:
        """One of them, if there is one."""
        return self.chance.sample(found, k=min(1, len(found)))

    def signal(self, name: str, number: int) -> None:
        """Send it to a service, if that lives, or to any VMM."""
        process = self.children[name].process if name in self.children else None
        for pid in self.any_of(self.judge.pids()) if name == "a VMM" else [process.pid] if process else []:
            os.kill(pid, number)

    def edit_record(self) -> None:
        """Cut or delete that of any VM."""
        for path in self.any_of(sorted(self.settings.state_dir.glob("vms/*/record.json"))):
            with suppress(OSError):
                path.unlink() if self.chance.random() < 0.5 else path.write_text('{"format_version": 1, "che')

    def disk(self, *, full: bool) -> None:
        """Take all of its room, or give it back."""
        (ballast := self.settings.state_dir / "ballast").unlink(missing_ok=True)
        with suppress(OSError):
            ballast.write_bytes(bytes((CHAOS.disk_mib << 20) * full))


def _on_wire(name: str, value: Callable[[], float]) -> Callable[[Stage], None]:
    return lambda stage: setattr(stage.wire, name, value())


KILLED = ("host", "control", "beat", "redis", "a VMM")
FAULTS: dict[str, tuple[Callable[[Stage], object], Callable[[Stage], object]]] = {
    **{f"kill -9 of {it}": (partial(Stage.signal, name=it, number=signal.SIGKILL), id) for it in KILLED},
    "a host worker that stands still": (
        partial(Stage.signal, name="host", number=signal.SIGSTOP),
        partial(Stage.signal, name="host", number=signal.SIGCONT),
    ),
    "a silent Redis": (_on_wire("silent", lambda: True), _on_wire("silent", lambda: False)),
    "a slow Redis": (_on_wire("delay_s", lambda: 0.2), _on_wire("delay_s", lambda: 0.0)),
    "half-open connections": (_on_wire("deaf_until", time.monotonic), id),
    "a full disk": (partial(Stage.disk, full=True), partial(Stage.disk, full=False)),
    "a record that is edited": (Stage.edit_record, id),
}
"""What each does, and what ends it."""


def play(stage: Stage, number: int) -> tuple[str, list[str]]:
    """One round: other specs, some faults, their end, and then all as specified, to stay so. What came, and what did
    not become or stay as it should.
    """
    chance, word = stage.chance, f"round{number}"
    wanted = [f"web-{index:03d}" for index in range(chance.randint(1, CHAOS.vms))]
    specs = Path(__file__).with_suffix(".yml").read_text().replace("REPLICAS", str(len(wanted))).replace("WORD", word)
    write_whole(Path(stage.settings.chosen_specs()), specs.encode())
    faults = chance.sample(sorted(FAULTS), k=chance.randint(1, CHAOS.faults))
    for fault in faults:
        stage.go_on(chance.uniform(0.0, CHAOS.fault_s / 2))
        FAULTS[fault][0](stage)
    stage.go_on(chance.uniform(0.0, CHAOS.fault_s))
    for fault in faults:
        FAULTS[fault][1](stage)
    began_s, ticks = time.monotonic(), 0.0
    while (problems := stage.judge.problems(wanted, word)) and ticks < CHAOS.ticks and not stage.judge.doubles:
        stage.go_on(0.2)
        ticks = (time.monotonic() - began_s) / CHAOS.tick_s
    if not problems:
        pids = stage.judge.pids()
        stage.go_on(2 * CHAOS.tick_s)
        moved = ["all was as specified, and then VMMs were started anew"] if pids != stage.judge.pids() else []
        problems = [*stage.judge.problems(wanted, word), *moved]
    return f"{len(wanted)} VMs; {', '.join(faults)}; {ticks:.0f} ticks", problems


def main(folder: str, seed: str, rounds: str) -> int:
    """The rounds, inside the namespaces."""
    settings = load()
    for path in (settings.state_dir, settings.run_dir):
        make_folder(path)
    small = ["mount", "-t", "tmpfs", "-o", f"size={CHAOS.disk_mib}m,mode=700", "tmpfs", str(settings.state_dir)]
    subprocess.run(small, check=True)
    with Netlink() as kernel:
        kernel.set_up(1, alias="")
    stage = Stage(settings, Random(int(seed)))  # noqa: S311 - faults are no secrets
    for number in range(1, int(rounds) + 1):
        said, problems = play(stage, number)
        sys.stdout.write(f"seed {seed}, round {number} of {rounds}: {said}: {'; '.join(problems) or 'as specified'}\n")
        sys.stdout.flush()
        if problems:
            shutil.copytree(settings.state_dir, Path(folder) / "state-then")
            return 1
    return 0


if __name__ == "__main__":
    if (child := os.fork()) == 0:
        sys.exit(main(*sys.argv[1:]))
    while (ended := os.wait())[0] != child:  # of VMMs and services that lost who started them, too
        pass
    sys.exit(os.waitstatus_to_exitcode(ended[1]))

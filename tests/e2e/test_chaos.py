"""`mikrom chaos`: its wire and its judge, and rounds of all that it can do, each with a seed of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mikrom_reconcile.services.chaos import Wire
from mikrom_reconcile.services.judge import Judge
from tests.fleet import wait_until

MIKROM = [sys.executable, "-m", "mikrom_reconcile"]


@pytest.fixture
def upstream(own_environment: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(own_environment / "redis.sock"))
        listening.listen()
        yield listening


def client_of(wire: Wire, upstream: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection through the wire, which carries already."""
    client = socket.create_connection(("127.0.0.1", wire.port), timeout=0.5)
    server = upstream.accept()[0]
    client.sendall(b"PING")
    assert server.recv(10) == b"PING"
    return client, server


def test_a_wire_carries_on_and_a_silent_one_keeps_it_until_it_speaks(
    own_environment: Path, upstream: socket.socket
) -> None:
    wire = Wire(own_environment / "redis.sock")
    client, server = client_of(wire, upstream)
    with client, server:
        wire.silent = True
        server.sendall(b"PONG")
        with pytest.raises(TimeoutError):
            client.recv(10)
        wire.silent = False
        client.settimeout(60)
        assert client.recv(10) == b"PONG"
        server.shutdown(socket.SHUT_RDWR)
        assert client.recv(10) == b""


def test_a_half_open_connection_says_nothing_more_and_a_new_one_does(
    own_environment: Path, upstream: socket.socket
) -> None:
    wire = Wire(own_environment / "redis.sock")
    client, server = client_of(wire, upstream)
    with client, server:
        wire.deaf_until = time.monotonic()
        server.sendall(b"PONG")
        with pytest.raises(TimeoutError):
            client.recv(10)
    client, server = client_of(wire, upstream)
    with client, server:
        client.settimeout(60)
        server.sendall(b"PONG")
        assert client.recv(10) == b"PONG"


def test_a_wire_without_redis_hangs_up(own_environment: Path) -> None:
    wire = Wire(own_environment / "none.sock")
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", wire.port), timeout=60) as client:
        assert client.recv(10) == b""


def test_the_judge_names_what_is_missing_what_is_left_and_what_is_there_twice(own_environment: Path) -> None:
    state_dir, run_dir = own_environment / "state", own_environment / "run"
    (state_dir / "vms" / "web-007").mkdir(parents=True)
    (state_dir / "tombstones").mkdir()
    (state_dir / "tombstones" / "web-008.json").touch()
    judge = Judge(state_dir, run_dir)
    name = f"chaos-{os.getpid()}"
    problems = judge.problems([name], "round1")
    assert f"wanted are {name}" in problems[0]
    assert f"{state_dir}/vms/web-007 is left of a VM that is not wanted" in problems
    assert not any("tombstones" in problem for problem in problems), "they outlive their VM"
    argv = [sys.executable, "-c", "import time; time.sleep(600)", "--id", name, "--api-sock", f"{run_dir}/x"]
    two = [subprocess.Popen(argv) for _ in range(2)]
    try:
        wait_until(lambda: {it.pid for it in two} <= {*judge.pids()}, "both to be seen")
        judge.look()
        doubles = [double for double in judge.doubles if name in double]
        assert len(doubles) == 1
        assert all(f"pid {it.pid}" in doubles[0] for it in two)
        assert any(f"{name} runs with '(its VMM does not say)'" in problem for problem in judge.problems([name], "x"))
    finally:
        for process in two:
            process.kill()
            process.wait()


def test_where_no_microvm_can_run_it_says_what_is_missing(own_environment: Path) -> None:
    environment = os.environ | {"MIKROM_FIRECRACKER": "/nowhere/firecracker"}
    done = subprocess.run([*MIKROM, "chaos"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "/nowhere/firecracker is not a program" in done.stderr


@pytest.mark.soak
@pytest.mark.kvm
@pytest.mark.redis
@pytest.mark.needs("redis-server", "unshare", "setpriv")
@pytest.mark.skipif(os.geteuid() != 0, reason="not root, which namespaces of one's own may take")
@pytest.mark.parametrize("seed", range(101, 106))
def test_after_each_round_of_faults_all_is_as_specified(own_environment: Path, seed: int) -> None:
    argv = [*MIKROM, "chaos", "--seed", str(seed), "--rounds", "20"]
    done = subprocess.run(argv, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

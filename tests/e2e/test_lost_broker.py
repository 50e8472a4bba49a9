"""Every command gives the same answer when its broker goes away under it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.cli.run_flow import request_for
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.dispatch.transport.broker import client_of
from mikrom_reconcile.settings import load
from tests.command import WEB
from tests.fleet import Fleet, wait_until
from tests.samples import plan

pytestmark = [pytest.mark.redis, pytest.mark.needs("redis-server")]

TREE = SourceTree(revision="files:1", files=(SourceFile(path="web.yml", text=WEB % 1),))
REQUEST = request_for("apply", TREE, load({}))
CALLS: dict[str, Callable[[Engine], object]] = {
    "names": lambda engine: engine.hosts.names(),
    "console": lambda engine: engine.hosts.console("localhost", "web-000", max_bytes=1),
    "source": lambda engine: engine.source(),
    "unfinished": lambda engine: engine.unfinished(),
    "plan": lambda engine: engine.plan(REQUEST),
    "apply": lambda engine: engine.apply(REQUEST, None, progress=lambda _: None),
    "accept": lambda engine: engine.accept("4f1c0a8"),
    "hand over": lambda engine: engine.hand_over(REQUEST, plan()),
    "runs": lambda engine: engine.store.runs(1),
    "placements": lambda engine: engine.store.placements("demo"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_whatever_is_asked_of_a_lost_broker_ends_in_the_same_words(
    call: Callable[[Engine], object], fleet: Fleet
) -> None:
    engine = wiring.open_engine(fleet.settings())
    fleet.stop_redis()
    with pytest.raises(SetupError, match=r"^the broker was lost: .*; whatever had begun goes on, run again to see$"):
        call(engine)


def test_logs_that_are_followed_outlive_a_restart_of_redis(fleet: Fleet) -> None:
    host = fleet.worker("host")
    fleet.worker("control", pool="threads")
    (fleet.folder / "web.yml").write_text(WEB % 1)
    mikrom = [sys.executable, "-m", "mikrom_reconcile"]
    environment = fleet.environment()
    subprocess.run([*mikrom, "apply", f"{fleet.folder}/web.yml", "--yes"], env=environment, timeout=240, check=True)
    following = fleet.run("logs", [*mikrom, "logs", "-f", "web-000"])
    console = Path(fleet.folder, "logs.log")
    wait_until(console.read_text, "the console")
    fleet.stop_redis()
    wait_until(lambda: "the broker was lost" in console.read_text(), "a word about the broker")
    fleet.start_redis()
    fleet.wait_for("host:localhost", host)
    assert following.poll() is None
    following.send_signal(signal.SIGINT)
    assert following.wait(timeout=240) == 130
    assert "mistake" not in console.read_text()
    assert "still trying" in console.read_text()


def test_a_fleet_is_told_from_every_other_by_what_its_redis_keeps(fleet: Fleet) -> None:
    own = wiring.place_of(fleet.settings())
    assert wiring.place_of(fleet.settings(MIKROM_STATE_DIR="/nowhere")) == own
    assert wiring.place_of(fleet.settings(CELERY_QUEUE_NAME="other:queue"))[0] != own[0]
    client_of(fleet.url).flushall()
    assert wiring.place_of(fleet.settings())[0] != own[0]
    assert "never-in-an-argument" not in own[1]
    fleet.stop_redis()
    with pytest.raises(SetupError, match="no answer from the broker"):
        wiring.place_of(fleet.settings())


def test_a_service_runs_where_nobody_takes_its_stdout(fleet: Fleet) -> None:
    (fleet.folder / "web.yml").write_text(WEB % 1)
    mikrom = f"exec {sys.executable} -m mikrom_reconcile worker --role control >&-"
    worker = fleet.run("control-localhost", ["sh", "-c", mikrom], MIKROM_SPECS=f"{fleet.folder}/web.yml")
    fleet.wait_for(f"control:localhost:{worker.pid}", worker)
    assert "Traceback" not in fleet.log("control:localhost")

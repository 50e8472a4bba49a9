"""Webhooks against servers of this test: who is told what, how often, and that no run waits for them."""

from __future__ import annotations

import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.plan import BEAT, RunReport
from mikrom_reconcile.dispatch.control_worker import webhooks
from mikrom_reconcile.dispatch.control_worker.webhooks import Webhooks
from mikrom_reconcile.settings import load
from mikrom_reconcile.times_and_sizes import WEBHOOKS
from tests.fleet import KEYS, Fleet, wait_until
from tests.samples import NOW, change, desired, observed, plan

pytestmark = pytest.mark.redis

SECRET, TOKEN = "never-in-redis", "glpat-never"
COMMIT = "3f2a1c9d8e7b" + "0" * 28


class Server(ThreadingHTTPServer):
    """Remembers what was posted, and answers with the first of `answers`, or 200 once they are used up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.hold = threading.Event()
        self.hold.set()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.hold.set()
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        self.server.hold.wait(60)
        code = self.server.answers.pop(0) if self.server.answers else 200
        self.send_response(code)
        if code == 302:
            self.send_header("Location", "https://elsewhere.example/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def redis(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    yield fleet
    fleet.close()


@pytest.fixture
def tell(redis: Fleet, server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(webhooks, "WEBHOOKS", type(WEBHOOKS)(pause_s=0.01, deadline_s=5.0))

    def run(report: RunReport, kind: str = "json", *, wait: bool = True) -> None:
        Webhooks(hooks(f"{kind}={server.url}"), redis.redis, KEYS).tell(report, COMMIT)
        threads = [thread for thread in threading.enumerate() if thread.name == "webhook"]
        for thread in threads if wait else ():
            thread.join()

    return run


def hooks(text: str) -> Any:
    return load({"MIKROM_WEBHOOKS": text, "MIKROM_WEBHOOK_SECRET": SECRET, "MIKROM_WEBHOOK_TOKEN": TOKEN})


def report(phase: str = "", *, healed: bool = False, **fields: Any) -> RunReport:
    down = [
        change("web-000", "start", "it is down", observed=observed("web-000", phase=phase), desired=desired("web-000"))
    ]
    found = plan(*(down if phase else []))
    return RunReport(
        run_id="r", origin=BEAT, plan=found, outcomes=(), remaining=plan() if healed else found, late=False,
        started_at=NOW, finished_at=NOW, **fields,
    )  # fmt: skip


def test_it_is_told_once_when_it_begins_and_changes_and_once_when_all_is_well(
    tell: Callable[..., None], server: Server, redis: Fleet
) -> None:
    for run in (report(), report("killed"), report("killed"), report("oom"), report(), report()):
        tell(run)
    bodies = [json.loads(body) for _, _, body in server.got]
    assert [body["state"] for body in bodies] == ["failing", "failing", "ok"]
    assert 'web-000 on localhost: phase: "running" → "killed" (killed)' in bodies[0]["lines"]
    for _, headers, body in server.got:
        signature = hmac.new(SECRET.encode(), body, "sha256").hexdigest()
        assert headers["X-Mikrom-Signature-256"] == f"sha256={signature}"
        assert SECRET.encode() not in body
    assert len({headers["X-Mikrom-Delivery"] for _, headers, _ in server.got}) == 3
    stored = b"".join(redis.redis.dump(key) or b"" for key in redis.redis.scan_iter())
    assert not [word for word in (SECRET, TOKEN, server.url) if word.encode() in stored]


def test_a_redis_that_forgot_costs_one_repetition(tell: Callable[..., None], server: Server, redis: Fleet) -> None:
    tell(report("killed"))
    redis.redis.flushall()
    tell(report("killed"))
    tell(report("killed"))
    assert len(server.got) == 2


def test_drift_that_the_same_run_put_right_is_told_too(tell: Callable[..., None], server: Server) -> None:
    tell(report("killed", healed=True))
    tell(report())
    assert [json.loads(body)["state"] for _, _, body in server.got] == ["healed", "ok"]


def test_a_broken_source_is_told(tell: Callable[..., None], server: Server) -> None:
    tell(report(source_problem="web.yml:1:1: no"), "slack")
    assert json.loads(server.got[0][2])["text"].endswith("• the source is broken: web.yml:1:1: no")
    tell(report(source_problem=f"{'a' * 40} by ana: no"), "github")
    assert server.got[1][0].endswith(f"/statuses/{'a' * 40}"), "the reason stands at the commit that has it"
    assert json.loads(server.got[1][2])["description"] == "by ana: no"


def test_what_is_not_taken_is_sent_again_until_it_is(tell: Callable[..., None], server: Server) -> None:
    server.answers = [503, 500]
    tell(report("killed"))
    tell(report("killed"))
    assert len(server.got) == 3


@pytest.mark.parametrize("answer", [404, 302])
def test_what_will_never_be_taken_is_not_sent_again_nor_anywhere_else(
    tell: Callable[..., None], server: Server, answer: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [answer]
    tell(report("killed"))
    tell(report("killed"))
    assert len(server.got) == 1
    assert "a webhook was not taken" in caplog.text
    assert server.url not in caplog.text


def test_no_run_waits_and_two_at_once_tell_once(tell: Callable[..., None], server: Server) -> None:
    server.hold.clear()
    began = time.monotonic()
    tell(report("killed"), wait=False)
    tell(report("killed"), wait=False)
    wait_until(lambda: server.got, "the first")
    assert time.monotonic() - began < 4, "the deadline is 5 s"
    server.hold.set()
    tell(report("killed"))
    assert len(server.got) == 1


@pytest.mark.parametrize(
    ("kind", "header", "named", "states"),
    [
        ("github", ("Authorization", f"Bearer {TOKEN}"), "context", ["success", "failure", "success"]),
        ("gitlab", ("Private-Token", TOKEN), "name", ["success", "failed", "success"]),
    ],
)
def test_a_commit_gets_a_status(
    tell: Callable[..., None], server: Server, kind: str, header: tuple[str, str], named: str, states: list[str]
) -> None:
    for run in (report(), report("killed"), report("killed"), report()):
        tell(run, kind)
    assert [json.loads(body)["state"] for _, _, body in server.got] == states
    path, headers, body = server.got[0]
    assert (path, headers[header[0]]) == (f"/hook/statuses/{COMMIT}", header[1])
    assert json.loads(body)[named] == "mikrom/demo"


def test_a_hook_that_cannot_be_signed_or_means_nothing_is_refused_without_telling_its_address() -> None:
    with pytest.raises(UsageError, match=r"json=…, which needs MIKROM_WEBHOOK_SECRET"):
        Webhooks(load({"MIKROM_WEBHOOKS": "json=https://h.example/T0"}), None, KEYS)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be like slack=") as raised:
        load({"MIKROM_WEBHOOKS": "irc=https://h.example/T0"})
    assert "T0" not in str(raised.value).partition("must be")[0]

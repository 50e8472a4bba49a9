"""Flower as people see it: refused without credentials, then workers, and tasks by what they do."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from tests.deploy.installed import free_port
from tests.fleet import ROOT, Fleet, wait_until
from tests.scratch import SCRATCH

pytestmark = pytest.mark.redis

CREDENTIALS = "ana:not-the-default"
CREATED = re.compile(r"create web-00\d on localhost · run [0-9a-f]{8}")
TABLE = "/tasks/datatable?draw=1&start=0&length=100&order[0][column]=0&columns[0][data]=name&search[value]="
SPECS = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 3, template: {image: hello}}\n"


class Page:
    """Flower beside workers that have just made three VMs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleet = Fleet(folder)
        self.port = free_port()
        specs = folder / "web.yml"
        specs.write_text(SPECS)
        self.mikrom("flower", FLOWER_BASIC_AUTH=CREDENTIALS, FLOWER_PORT=str(self.port))
        wait_until(lambda: self.status("/healthcheck") == 200, "Flower")
        for role, pool in (("host", "gevent"), ("control", "threads")):
            self.fleet.worker(role, pool=pool, app="mikrom_reconcile.celery_app", MIKROM_SPECS=str(specs))
        assert self.mikrom("apply", str(specs), "--yes").wait(timeout=240) == 0
        wait_until(lambda: self.get(TABLE).count("create web-00") == 3, "three tasks in Flower")

    def mikrom(self, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        return self.fleet.run(words[0], [sys.executable, "-m", "mikrom_reconcile", *words], **variables)

    def get(self, path: str, credentials: str = CREDENTIALS) -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: str = answer.read().decode()
            return text

    def status(self, path: str) -> int | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
                status: int = answer.status
                return status
        except HTTPError as error:
            with error:
                return error.code
        except OSError:
            return None

    def seen(self, path: str, credentials: str = "") -> str:
        """The page as Chromium has it, after its scripts have run."""
        address = f"http://{credentials}{'@' if credentials else ''}127.0.0.1:{self.port}{path}"
        argv = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
        argv += [f"--user-data-dir={self.folder}/chromium", "--dump-dom", address]
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=240).stdout


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with tempfile.TemporaryDirectory(prefix="mk-", dir=SCRATCH, ignore_cleanup_errors=True) as folder:
        page = Page(Path(folder))
        try:
            yield page
        finally:
            page.fleet.close()


def test_the_table_of_tasks_says_what_each_does_and_is_searched_by_vm(page: Page) -> None:
    rows = json.loads(page.get(TABLE))["data"]
    assert len([row for row in rows if CREATED.fullmatch(row["name"])]) == 3
    found = json.loads(page.get(f"{TABLE}web-001"))["data"]
    assert [row["name"].partition(" on ")[0] for row in found] == ["create web-001"]


def test_the_page_of_the_broker_has_the_queues_of_hosts_that_came_up_after_it(page: Page) -> None:
    assert "mikrom:queue.localhost" in page.get("/broker")
    queues = json.loads(page.get("/api/queues/length"))["active_queues"]
    assert {"mikrom:queue", "mikrom:queue.localhost"} <= {queue["name"] for queue in queues}


def test_metrics_and_api_keep_the_names_of_the_tasks(page: Page) -> None:
    assert "web-00" not in page.get("/metrics")
    assert 'task="mikrom.create_vm"' in page.get("/metrics")
    names = {task["name"] for task in json.loads(page.get("/api/tasks")).values()}
    assert "mikrom.create_vm" in names
    assert not any("web-00" in name for name in names)


@pytest.mark.needs("chromium")
def test_a_browser_is_refused_without_credentials(page: Page) -> None:
    shown = page.seen("/tasks")
    assert "web-00" not in shown
    assert "Task History" not in shown


@pytest.mark.needs("chromium")
def test_a_browser_with_credentials_shows_workers_and_named_tasks(page: Page) -> None:
    assert len(set(CREATED.findall(page.seen("/tasks", CREDENTIALS)))) == 3
    workers = page.seen("/", CREDENTIALS)
    assert "host@localhost" in workers
    assert "control@localhost" in workers


def test_the_picture_in_the_guide_is_one_and_small() -> None:
    picture = (ROOT / "docs/flower.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 200_000

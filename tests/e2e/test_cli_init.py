"""What `mikrom init` writes works as it stands: every step of its pipelines is run here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from jsonschema import Draft7Validator

from mikrom_reconcile.host.drivers.simulated import SimulatedDriver
from mikrom_reconcile.settings import load
from tests.command import Mikrom, names
from tests.people import People

PIPELINES = {
    "github": (".github/workflows/mikrom.yml", "github-workflows"),
    "gitlab": (".gitlab-ci.yml", "gitlab-ci"),
}
"""The file of each, and the name of the schema that its service publishes."""

TOKEN = "never-in-an-argument"
MARK = "<!-- mikrom plan -->\n"
OURS = {"user": {"login": "github-actions[bot]"}, "author": {"id": 7}}
OTHERS = {"user": {"login": "ana"}, "author": {"id": 8}}

pytestmark = pytest.mark.needs("curl", "jq")


class Forge:
    """As much of the APIs of GitHub and GitLab as has to do with comments."""

    def __init__(self) -> None:
        self.comments: list[dict[str, Any]] = [{"body": f"{MARK}not by us", **OTHERS}, {"body": "fine", **OURS}] * 60
        self.refuses = False
        forge = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
                given = self.headers.get("Authorization") or f"Bearer {self.headers.get('PRIVATE-TOKEN')}"
                fine = given == f"Bearer {TOKEN}" and not forge.refuses
                content = json.dumps(forge.answer(self.command, self.path, sent) if fine else {}).encode()
                self.send_response(200 if fine else 403)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_PUT = answer  # noqa: N815 - called so by http.server

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, method: str, path: str, sent: str) -> Any:
        place, query = urlsplit(path).path, parse_qs(urlsplit(path).query)
        if place == "/user":
            return OURS["author"]
        assert re.match("/(repos/ana/shop/issues|projects/5/merge_requests/3/notes)", place), place
        if method == "GET":
            first = (int(query["page"][0]) - 1) * int(query["per_page"][0])
            shown = self.comments[first : first + int(query["per_page"][0])]
            return [
                {"id": first + at, "url": f"{self.url}{place}/{first + at}", **each} for at, each in enumerate(shown)
            ]
        body = json.loads(sent)["body"] if sent.startswith("{") else parse_qs(sent)["body"][0]
        if method == "POST":
            self.comments.append({"body": body, **OURS})
        else:
            self.comments[int(place.rpartition("/")[2])]["body"] = body
        return {}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def forge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Forge]:
    forge = Forge()
    told = {
        "GITHUB_API_URL": forge.url, "GITHUB_REPOSITORY": "ana/shop", "GITHUB_TOKEN": TOKEN, "PULL": "3",
        "CI_API_V4_URL": forge.url, "CI_PROJECT_ID": "5", "CI_MERGE_REQUEST_IID": "3", "PLAN_TOKEN": TOKEN,
    }  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    yield forge
    forge.close()


@pytest.fixture
def shop(mikrom: Mikrom, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project as it is begun, on a runner with mikrom on its PATH."""
    (folder / "bin").mkdir()
    (folder / "bin" / "mikrom").write_text(f'#!/bin/sh\nexec {sys.executable} -m mikrom_reconcile "$@"\n')
    (folder / "bin" / "mikrom").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", f"{folder}/summary.md")
    monkeypatch.setenv("MIKROM_BROKER_URL", "")  # as a secret that is not set
    mikrom("init", "shop", "--ci", "github")
    mikrom("init", "shop", "--ci", "gitlab")
    return folder / "shop"


def steps(shop: Path, service: str, job: str) -> list[tuple[str, bool]]:
    """What a job runs, and whether that is run after a failure, too."""
    described: dict[str, Any] = yaml.load((shop / PIPELINES[service][0]).read_text(), yaml.BaseLoader)
    if service == "gitlab":
        script = described[job]["script"], described[job].get("after_script", [])
        return [(line, always) for always, lines in enumerate(script) for line in lines]  # type: ignore[misc]
    return [(step["run"], "if" in step) for step in described["jobs"][job]["steps"] if "run" in step]


def run(shop: Path, service: str, job: str) -> list[int]:
    """The exit codes of a job's steps, as its runner starts them."""
    codes: list[int] = []
    for step, always in steps(shop, service, job):
        if always or not any(codes):
            argv = ["bash", "-e", "-c", step]
            codes.append(subprocess.run(argv, cwd=shop, stdin=subprocess.DEVNULL, timeout=240, check=False).returncode)
    return codes


@pytest.mark.parametrize("service", PIPELINES)
def test_every_job_of_a_pipeline_does_what_it_is_there_for(
    service: str, shop: Path, mikrom: Mikrom, forge: Forge
) -> None:
    assert set(run(shop, service, "review")) == {0}
    assert "3 to create" in (shop / "plan.md").read_text()
    assert set(run(shop, service, "plan")) == {0}
    (shop / "specs").rename(shop / "away")  # what is applied is what was saved
    assert set(run(shop, service, "apply")) == {0}
    assert names(mikrom) == ["web-000", "web-001", "web-002"]
    (shop / "away").rename(shop / "specs")
    assert set(run(shop, service, "drift")) == {0}
    SimulatedDriver(load().state_dir).change("web-001", end="killed")
    assert 2 in run(shop, service, "drift")


def test_what_people_have_approved_in_the_pull_request_is_applied_after_the_merge(
    shop: Path, mikrom: Mikrom, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = People(shop.parent)
    monkeypatch.setenv("MIKROM_APPROVALS", "1")
    monkeypatch.setenv("MIKROM_APPROVERS", str(people.file))
    mikrom("apply", "--yes", "shop/specs")
    web = shop / "specs" / "web.yml"
    web.write_text(web.read_text().replace("replicas: 3", "replicas: 2").replace("max: 20%", "max: 1"))
    run(shop, "github", "review")
    (shop / "approvals").mkdir()
    out, key = "shop/approvals/ana.approval", str(people.key("ana"))
    mikrom("approve", "shop/mikrom.plan", "--key", key, "--out", out, "--yes")
    assert set(run(shop, "github", "plan")) == {0}
    assert set(run(shop, "github", "apply")) == {0}
    assert names(mikrom) == ["web-000", "web-001"]


@pytest.mark.parametrize("service", PIPELINES)
def test_a_pull_request_has_one_comment_with_its_plan_as_it_is_now(service: str, shop: Path, forge: Forge) -> None:
    before = list(forge.comments)
    assert set(run(shop, service, "review")) == {0}
    *others, ours = forge.comments
    assert others == before, "what others wrote under our mark is theirs"
    assert ours["body"] == MARK + (shop / "plan.md").read_text()
    assert "<details open><summary>3 changes</summary>" in ours["body"]

    (shop / "specs" / "web.yml").write_text("kind: Flet\n")
    (shop / "plan.md").unlink()  # as a runner cleans up before each job
    assert 1 in run(shop, service, "review")
    assert [each for each in forge.comments if each["body"].startswith(f"{MARK}**No plan:**")] == forge.comments[-1:]
    assert len(forge.comments) == len(before) + 1
    forge.refuses = True
    assert run(shop, service, "review")[-1] == 22, "a comment that was not taken is a failure"


def test_mistakes_are_told_in_the_forms_that_each_service_reads(shop: Path, forge: Forge) -> None:
    (shop / "specs" / "web.yml").write_text("kind: Flet\n")
    run(shop, "github", "review")
    run(shop, "gitlab", "review")
    (told,) = json.loads((shop / "mikrom.sarif").read_text())["runs"]
    assert told["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "specs/web.yml"
    assert 'failures="1"' in (shop / "mikrom-junit.xml").read_text()
    assert (shop.parent / "summary.md").read_text() == (shop / "plan.md").read_text()


@pytest.mark.parametrize("service", PIPELINES)
def test_a_pipeline_is_of_the_form_that_its_service_reads(service: str, shop: Path) -> None:
    path, name = PIPELINES[service]
    described = {{True: "on"}.get(key, key): value for key, value in yaml.safe_load((shop / path).read_text()).items()}
    schema = files("check_jsonschema").joinpath("builtin_schemas", "vendor", f"{name}.json").read_text()
    Draft7Validator(json.loads(schema)).validate(described)  # YAML 1.1 in PyYAML takes `on` for true


def test_nothing_is_fetched_by_a_name_that_anybody_could_take(shop: Path) -> None:
    written = "".join((shop / path).read_text() for path, _ in PIPELINES.values())
    assert not re.search(r"\b(pip|pipx|uv|uvx|npm|docker|wget)\b|\bimage:", written)
    owners = {uses.partition("/")[0] for uses in re.findall(r"uses: (.*)", written)}
    assert owners == {"actions", "github"}


def test_nothing_that_is_there_is_overwritten_not_even_a_link_to_nowhere(mikrom: Mikrom, folder: Path) -> None:
    (folder / "new" / "specs").mkdir(parents=True)
    (folder / "new" / "specs" / "web.yml").symlink_to("nowhere.yml")
    assert "specs/web.yml already; nothing was written" in mikrom("init", "new", code=1).stderr
    assert [path.name for path in (folder / "new").rglob("*")] == ["specs", "web.yml"]
    assert mikrom("init", "new", "--ci", "gitlab").stdout.startswith("wrote new/.gitlab-ci.yml\nNext:")
    assert ".gitlab-ci.yml already" in mikrom("init", "new", "--ci", "gitlab", code=1).stderr

"""The repository is the control panel: pushes to a bare repository, `mikrom up`, real microVMs, a forge's server."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_metrics import free_port, scrape
from tests.e2e.test_up import Up
from tests.fleet import wait_until
from tests.people import People
from tests.unit.control.test_signers import UNSIGNED, Signed
from tests.unit.dispatch.test_webhooks import Server

pytestmark = [pytest.mark.redis, pytest.mark.kvm, pytest.mark.soak, pytest.mark.timeout(1200)]

SPECS = """\
apiVersion: mikrom/v1
kind: Project
metadata: {name: shop}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: %d
  prune: {max: 1}
  template: {image: hello, machine: {mem_size_mib: 4}}
  rollout: {canary: 1, auto_promote: true, min_healthy_time: 300ms, auto_revert: true}
"""
OWN_IMAGE = """\
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: own}}
spec: {{kernel: {{source: "file://{kernel}", sha256: {sha256}}}}}
"""


class Site:
    """A bare repository and a clone of it, the server of the forge, and every service on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server, self.port = folder, Server(), free_port()
        self.bare, self.people = folder / "shop.git", People(folder)
        self.clone = Signed(folder / "clone")
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(self.bare)], check=True)
        self.clone.git("remote", "add", "origin", str(self.bare))
        self.good = self.push(SPECS % 3)
        self.up = Up(
            folder,
            driver="firecracker",
            MIKROM_SPECS=f"git+file://{self.bare}@main#specs",
            MIKROM_GIT_ALLOWED_SIGNERS=str(self.clone.allowed),
            MIKROM_APPROVALS="1",
            MIKROM_APPROVERS=str(self.people.file),
            MIKROM_WEBHOOKS=f"json={self.server.url},github={self.server.url}",
            MIKROM_WEBHOOK_SECRET="sesame",
            MIKROM_WEBHOOK_TOKEN="open",
            MIKROM_METRICS=str(self.port),
        )

    def push(self, text: str, *, signer: str = "ana") -> str:
        commit = self.clone.signed(signer, text)
        self.clone.git("push", "-q", "--force", "origin", "HEAD:main")
        return commit

    def vms(self) -> dict[str, object]:
        """The microVMs that run, and their processes."""
        return {name: row["pid"] for name, row in self.up.rows().items() if row["phase"] == "running"}

    def statuses(self, commit: str) -> list[dict[str, Any]]:
        """What the forge was told of a commit, in order."""
        return [json.loads(body) for path, _, body in self.server.got if path.endswith(f"/statuses/{commit}")]

    def last_status(self, commit: str) -> dict[str, Any]:
        return (self.statuses(commit) or [{"state": "none", "description": ""}])[-1]

    def news(self) -> dict[str, Any]:
        told = [json.loads(body) for path, _, body in self.server.got if path.endswith("/hook")]
        return told[-1] if told else {"state": "none", "summary": ""}

    def source(self) -> dict[str, Any]:
        return dict(json.loads(self.up.mikrom("status", "-o", "json").stdout)["source"])

    def back_to(self, commit: str) -> None:
        self.clone.git("checkout", "-q", "-f", "main")
        self.clone.git("reset", "-q", "--hard", commit)
        self.clone.git("clean", "-q", "-f", "-d")
        self.clone.git("push", "-q", "--force", "origin", f"{commit}:main")
        wait_until(lambda: not self.source()["problem"], "the good one again")
        wait_until(lambda: self.news()["state"] == "ok", "that all is well")

    def close(self) -> None:
        self.up.process.terminate()
        self.up.process.wait()
        self.up.environment["MIKROM_APPROVALS"] = "0"
        self.up.specs.write_text(SPECS % 3)
        destroyed = self.up.mikrom("destroy", str(self.up.specs), "--yes")
        self.server.close()
        assert destroyed.returncode == 0, destroyed.stderr


@pytest.fixture
def site(own_environment: Path) -> Iterator[Site]:
    site = Site(own_environment)
    yield site
    site.close()


def unsigned(site: Site) -> None:
    site.clone.commit(web=SPECS % 1)


def by_a_stranger(site: Site) -> None:
    site.clone.signed("mallory", SPECS % 1)


def forced(site: Site) -> None:
    site.clone.git("checkout", "-q", "--orphan", "other")
    site.clone.signed("ana", SPECS % 1)


def broken(site: Site) -> None:
    site.clone.signed("ana", SPECS % 1 + "kind: Flet\n")


def hostile(site: Site) -> None:
    (site.clone.folder / "specs" / "x.yml").symlink_to("/etc/passwd")
    site.clone.signed("ana", SPECS % 1)


BAD: dict[str, tuple[Callable[[Site], None], str]] = {
    "unsigned": (unsigned, UNSIGNED),
    "signed by a stranger": (by_a_stranger, UNSIGNED),
    "forced": (forced, "main was forced"),
    "broken": (broken, "specs/web.yml:"),
    "hostile": (hostile, "is a link"),
}


def test_from_a_push_to_a_rollback_with_all_that_must_not_get_through(site: Site) -> None:
    wait_until(lambda: site.last_status(site.good)["state"] == "success", "the first commit to be applied")
    before = site.vms()
    assert before.keys() == {"web-000", "web-001", "web-002"}
    fewer = site.push(SPECS % 2)
    take_away_what_was_approved(site, fewer, before)
    before, fewer = stop_a_bad_image_at_the_canary(site)
    for name, (commit_badly, why) in BAD.items():
        commit_badly(site)
        refuse(site, name, why, before)
        site.back_to(fewer)
    back = site.up.mikrom("rollback", "--yes")
    assert back.returncode == 0, back.stdout + back.stderr
    now = site.vms()
    assert now.pop("web-002")
    assert now == before
    assert "is rolled back to revision 1: Beat leaves it alone" in site.up.mikrom("plan").stdout


def take_away_what_was_approved(site: Site, commit: str, before: dict[str, object]) -> None:
    """Beat does not: the plan is shown, approved and applied, and the forge is told of each."""
    wait_until(lambda: site.last_status(commit)["state"] == "failure", "the commit to be refused")
    assert "web-002: approvals needed to take data away: 1, given: 0" in site.news()["lines"][0]
    assert site.vms() == before
    comment, plan, approval = (f"{site.folder}/{name}" for name in ("plan.md", "fewer.plan", "ana.approval"))
    Path(comment).write_text(site.up.mikrom("plan", "-o", "markdown", "--out", plan).stdout)
    assert "| - delete | web-002 |" in Path(comment).read_text()
    assert (
        "1 VM would lose data, which is refused so far: approvals needed to take data away: 1"
        in Path(comment).read_text()
    )
    signed = site.up.mikrom("approve", plan, "--out", approval, "--yes", "--key", str(site.people.key("ana")))
    assert signed.returncode == 0, signed.stderr
    applied = site.up.mikrom("apply", plan, approval, "--yes")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert site.vms() == {name: pid for name, pid in before.items() if name != "web-002"}
    wait_until(lambda: site.last_status(commit)["state"] == "success", "the commit to be as specified")
    assert "approved by ana" in site.up.mikrom("history", "-o", "json").stdout


def stop_a_bad_image_at_the_canary(site: Site) -> tuple[dict[str, object], str]:
    """It goes back by itself; what runs then, and the commit that people mend it with."""
    before, kernel = site.vms(), site.folder / "state" / "images" / "own.elf"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_bytes(b"no kernel")
    image = OWN_IMAGE.format(kernel=kernel, sha256=hashlib.sha256(b"no kernel").hexdigest())
    bad = site.push((SPECS % 2).replace("image: hello", "image: own") + image)
    wait_until(lambda: "[reverted]" in json.dumps(site.news()), "the news that it went back")
    wait_until(lambda: site.vms().keys() == before.keys(), "the canary to be back")
    assert {name for name, pid in site.vms().items() if pid != before[name]} == {"web-000"}
    assert site.last_status(bad)["state"] == "failure"
    mended = site.push(SPECS % 2)
    wait_until(lambda: site.last_status(mended)["state"] == "success", "all to be as before")
    return site.vms(), mended


def refuse(site: Site, name: str, why: str, before: dict[str, object]) -> None:
    """A push that changes nothing, and whose reason is where people look."""
    site.clone.git("push", "-q", "--force", "origin", "HEAD:main")
    bad = site.clone.git("rev-parse", "HEAD")
    wait_until(lambda: why in site.source()["problem"], f"{name}: the reason in the status")
    wait_until(lambda: why in site.news()["summary"], f"{name}: the webhook")
    assert site.news()["state"] == "failing", name
    wait_until(lambda: why in site.last_status(bad)["description"], f"{name}: the status of the commit")
    assert site.last_status(bad)["state"] == "failure", name
    assert scrape(site.port)["mikrom_source_broken", ()] == 1, name
    assert site.vms() == before, name

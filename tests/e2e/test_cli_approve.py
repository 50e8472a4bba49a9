"""`mikrom approve`: nobody takes data away alone, on control and on the host alike."""

from __future__ import annotations

import getpass
import os
import stat
from pathlib import Path

import pytest

from tests.command import WEB, Mikrom, document, names
from tests.people import People

APPROVAL = f"fewer.plan.{getpass.getuser()}.approval"


@pytest.fixture
def people(folder: Path, monkeypatch: pytest.MonkeyPatch) -> People:
    people = People(folder)
    monkeypatch.setenv("MIKROM_APPROVALS", "2")
    monkeypatch.setenv("MIKROM_APPROVERS", str(people.file))
    return people


def test_a_plan_that_takes_vms_away_is_applied_once_two_people_have_approved_it(
    mikrom: Mikrom, folder: Path, people: People
) -> None:
    mikrom("apply", "--yes")
    (folder / "specs" / "web.yml").write_text((WEB % 1) + "  prune: {max: 100%}\n")
    planned = mikrom("plan", "--out", "fewer.plan").stdout
    assert "2 VMs would lose data, which is refused so far: approvals needed to take data away: 2" in planned
    assert mikrom("apply", "--yes", code=8).stdout.count("[approval]") == 1
    signed = mikrom("approve", "fewer.plan", "--key", str(people.key("ana")), "--yes").stdout
    assert f"Takes away the data of 2 VMs: web-[001-002]\nwrote {APPROVAL}\n" in signed
    assert stat.S_IMODE((folder / APPROVAL).stat().st_mode) == 0o600
    mikrom("approve", "fewer.plan", "--key", str(people.key("bo")), "--out", "bo.approval", "--yes")
    assert "given: 1 by ana" in mikrom("apply", "--check", "fewer.plan", APPROVAL).stdout
    refused = mikrom("apply", "--yes", "fewer.plan", APPROVAL, code=8)
    assert "given: 1 by ana; who can give them: bo, cy" in refused.stdout
    assert len(names(mikrom)) == 3
    mikrom("apply", "--yes", "fewer.plan", APPROVAL, "bo.approval")
    assert names(mikrom) == ["web-000"]
    assert document("runs", mikrom("history", "-o", "json"))["runs"][0]["origin"].endswith("approved by ana, bo")


def test_nothing_else_gets_around_it(mikrom: Mikrom, folder: Path, people: People) -> None:
    mikrom("apply", "--yes")
    assert "[approval]" in mikrom("delete", "--yes", "web-001", code=8).stdout
    assert "[approval]" in mikrom("destroy", "--yes", code=8).stdout
    os.environ["MIKROM_APPROVALS"] = "0"
    mikrom("plan", "--out", "none.plan")
    assert "no data away: nobody has to approve it" in mikrom(*approving("none.plan", people), code=64).stderr
    assert "no plan that" in mikrom(*approving("specs/web.yml", people), code=64).stderr
    (folder / "specs" / "web.yml").write_text((WEB % 2) + "  prune: {max: 100%}\n")
    mikrom("plan", "--out", "fewer.plan")
    assert "no approval that" in mikrom("apply", "--yes", "fewer.plan", "specs/web.yml", code=1).stderr
    assert mikrom("approve", "fewer.plan", "--yes", "--key", "nokey", code=1).stderr.startswith("error: ")
    assert names(mikrom) == ["web-000", "web-001", "web-002"]


def approving(plan: str, people: People) -> list[str]:
    return ["approve", plan, "--yes", "--key", str(people.key("ana"))]

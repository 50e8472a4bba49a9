"""A frozen project: what is asked for waits and says why, and a person can go past it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.command import WEB, Mikrom, document, write_specs

FROZEN = "metadata: {name: demo}\nspec: {freeze: {reason: Christmas}}\n"


def test_a_person_freezes_a_project_goes_past_that_and_thaws_it(folder: Path, mikrom: Mikrom) -> None:
    write_specs(folder, WEB % 2)
    mikrom("apply", "--yes")
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="minutes")
    told = mikrom("freeze", "--reason", "bad disks", "--until", until).stdout
    assert told.startswith("Project demo is frozen by ")
    assert told.endswith(f" until {until}: bad disks.\n")
    assert "project demo is frozen by" in mikrom("plan").stdout, "also where nothing is to be changed"
    write_specs(folder, WEB % 3)
    planned = document("plan", mikrom("plan", "-o", "json"))
    assert [(change["kind"], change["held_by"]) for change in planned["changes"]] == [("wait", "freeze")]
    assert "1 VM waiting" in mikrom("apply", "--yes", code=8).stdout
    assert "create is held back: does not exist; the project is frozen by" in mikrom("explain", "web-002").stdout
    assert "project demo is frozen by" in mikrom("status").stderr
    mikrom("plan", "--override-freeze", "--out", "plan.json")
    assert "1 created" in mikrom("apply", "plan.json", "--yes").stdout
    assert "apply --override-freeze by " in mikrom("history").stdout
    assert mikrom("unfreeze").stdout == "Project demo is not frozen by command any more.\n"
    assert "frozen" not in mikrom("plan").stdout


def test_what_git_freezes_is_not_thawed_by_command(folder: Path, mikrom: Mikrom) -> None:
    write_specs(folder, (WEB % 1).replace("metadata: {name: demo}\n", FROZEN))
    assert "1 VM waiting" in mikrom("apply", "--yes", code=8).stdout
    assert "project demo is frozen by " in mikrom("unfreeze").stderr
    assert "1 created" in mikrom("apply", "--yes", "--override-freeze").stdout


@pytest.mark.parametrize("until", ["tomorrow", "2026-12-27", "2999-12-27T08:00", "2026-01-01T00:00Z", "", "17:00"])
def test_an_end_that_is_none_is_told(folder: Path, mikrom: Mikrom, until: str) -> None:
    write_specs(folder, WEB % 1)
    told = mikrom("freeze", "--until", until, code=64).stderr
    assert f"--until {until}: write a time to come and its distance from UTC, such as 2026-12-27T08:00+01:00" in told

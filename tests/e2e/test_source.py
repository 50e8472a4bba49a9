"""The specs of scheduled runs: from git, followed, and never lost to a source that breaks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mikrom_reconcile.dispatch.app import FleetApp
from tests.e2e.test_metrics import free_port, scrape
from tests.fleet import KEYS, ROOT, Fleet, wait_until
from tests.unit.control.test_git_source import Repository
from tests.unit.control.test_signers import UNSIGNED, Signed

pytestmark = pytest.mark.redis

WEB = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: %d, template: {image: hello}}\n"


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    try:
        fleet.worker("host", MIKROM_TEST_BOOT_S="0")
        yield fleet
    finally:
        fleet.close()


@pytest.fixture
def repository(own_environment: Path) -> Repository:
    return Repository(own_environment / "repository")


def asked(app: FleetApp, task: str, **arguments: str) -> dict[str, Any]:
    told: dict[str, Any] = app.send_task(f"mikrom.{task}", kwargs=arguments, queue=KEYS.queue).get(timeout=240)
    return told


def mikrom(fleet: Fleet, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mikrom_reconcile", *words]
    return subprocess.run(argv, env=fleet.environment() | more, capture_output=True, text=True, cwd=ROOT, check=False)


def test_a_branch_is_followed_and_a_broken_commit_keeps_the_last_good_one(
    fleet: Fleet, app: FleetApp, repository: Repository
) -> None:
    good = repository.commit(web=WEB % 2)[:12]
    fleet.worker("control", pool="threads", MIKROM_SPECS=f"git+file://{repository.folder}@main#specs")
    assert asked(app, "sync_source") == {"revision": good, "problem": ""}
    assert asked(app, "reconcile")["done"] == "2 create done"

    bad = repository.commit(web=WEB % -1)
    told = asked(app, "sync_source")
    assert told["revision"] == good
    assert "specs/web.yml:4" in told["problem"]
    (fleet.folder / "state" / "sim" / "web-001.json").unlink()
    done = asked(app, "reconcile")["done"]
    blamed = f"{bad} by a test <test@example.net>"
    assert done.startswith(f"1 start done; the source is broken, {good} was used: {blamed}: 1 problem(s)")
    last = json.loads(mikrom(fleet, "get", "runs", "-o", "json").stdout)["runs"][0]
    assert (last["revision"], last["author"]) == (good, "a test <test@example.net>")
    assert last["source_problem"] == told["problem"]
    status = mikrom(fleet, "status", "-o", "json")
    assert status.returncode == 1
    assert json.loads(status.stdout)["source"]["problem"] == told["problem"]
    assert json.loads(status.stdout)["source"]["broken"] == blamed
    doctor = mikrom(fleet, "doctor")
    assert doctor.returncode == 1
    assert f"revision {good} is used on" in doctor.stdout

    mended = repository.commit(web=WEB % 3)[:12]
    assert asked(app, "reconcile")["done"] == "1 create done"
    assert asked(app, "sync_source") == {"revision": mended, "problem": ""}
    assert [mikrom(fleet, word).returncode for word in ("doctor", "status")] == [0, 0]


def test_a_source_that_vanishes_changes_nothing_even_after_a_restart_and_the_loss_of_redis(
    fleet: Fleet, app: FleetApp, repository: Repository
) -> None:
    good = repository.commit(web=WEB % 2)[:12]
    specs = f"git+file://{repository.folder}@main#specs"
    control = fleet.worker("control", pool="threads", MIKROM_SPECS=specs)
    assert asked(app, "reconcile")["done"] == "2 create done"
    repository.folder.rename(repository.folder.with_name("moved"))
    control.kill()
    control.wait()
    fleet.redis.flushall()
    fleet.worker("control", pool="threads", MIKROM_SPECS=specs)
    wait_until(lambda: fleet.redis.exists(KEYS.heartbeat("host:localhost")), "the host to be seen again")
    done = asked(app, "reconcile")["done"]
    assert done.startswith(f"nothing to do; the source is broken, {good} was used:")
    assert "does not appear to be a git repository" in done


def test_with_the_last_good_one_lost_too_there_is_no_plan_at_all(
    fleet: Fleet, app: FleetApp, repository: Repository
) -> None:
    repository.commit(web=WEB % 2)
    specs = f"git+file://{repository.folder}@main#specs"
    other = str(fleet.folder / "other-state")
    control = fleet.worker("control", pool="threads", MIKROM_SPECS=specs, MIKROM_STATE_DIR=other)
    assert asked(app, "reconcile")["done"] == "2 create done"
    repository.folder.rename(repository.folder.with_name("moved"))
    control.kill()
    control.wait()
    yet_another = str(fleet.folder / "yet-another-state")
    control = fleet.worker("control", pool="threads", MIKROM_SPECS=specs, MIKROM_STATE_DIR=yet_another)
    assert asked(app, "reconcile")["done"].startswith("nothing to do; the source is broken"), "Redis has it still"
    control.kill()
    control.wait()
    fleet.redis.delete(KEYS.good_specs, KEYS.source)
    third = str(fleet.folder / "third-state")
    fleet.worker("control", pool="threads", MIKROM_SPECS=specs, MIKROM_STATE_DIR=third)
    told = asked(app, "reconcile")
    assert told["exit_code"] == 1
    assert told["done"].endswith("no good revision of it is known, so nothing is planned")
    assert "nothing is planned" in mikrom(fleet, "status").stdout
    assert len(json.loads(mikrom(fleet, "get", "vms", "-o", "json").stdout)["vms"]) == 2


def test_commands_read_specs_from_git_themselves_and_warn_of_others_than_those_of_beat(
    fleet: Fleet, app: FleetApp, repository: Repository
) -> None:
    commit = repository.commit(web=WEB % 2)[:12]
    place = f"git+file://{repository.folder}@main#specs"
    fleet.worker("control", pool="threads", MIKROM_SPECS=place)
    planned = mikrom(fleet, "plan", place, "-o", "json")
    assert json.loads(planned.stdout)["revision"] == commit
    asked(app, "sync_source")
    same, other = fleet.folder / "same.yml", fleet.folder / "other.yml"
    same.write_text(WEB % 2)
    other.write_text(WEB % 1)
    warning = f"Beat's next run undoes what {place} at {commit} contradicts"
    assert warning not in mikrom(fleet, "apply", str(same), "--yes").stderr
    assert warning in mikrom(fleet, "apply", str(other), "--check").stderr
    assert warning in mikrom(fleet, "destroy", str(same), "--yes").stderr
    refused = mikrom(fleet, "plan", place, "specs")
    assert refused.returncode == 64
    hostile = mikrom(fleet, "plan", "git+ext::sh -c x")
    assert (hostile.returncode, "its protocol must be one of" in hostile.stderr) == (64, True)


def test_an_unsigned_and_a_forced_commit_are_told_where_people_look_and_a_policy_stops_beat(
    fleet: Fleet, app: FleetApp
) -> None:
    repository, policy, port = Signed(fleet.folder / "repository"), fleet.folder / "policy", free_port()
    policy.write_text("#!/bin/sh\nexit 0\n")
    policy.chmod(0o755)
    place, good = f"git+file://{repository.folder}@main#specs", repository.signed("ana", WEB % 2)[:12]
    signers = {"MIKROM_GIT_ALLOWED_SIGNERS": str(repository.allowed)}
    more = {"MIKROM_POLICY": str(policy), "MIKROM_METRICS": str(port), **signers}
    fleet.worker("control", pool="threads", MIKROM_SPECS=place, **more)
    assert asked(app, "reconcile")["done"] == "2 create done"

    bad = repository.commit(web=WEB % 1)
    done = f"nothing to do; the source is broken, {good} was used: {bad} by a test <test@example.net>: {UNSIGNED}"
    assert asked(app, "reconcile")["done"].startswith(done)
    assert scrape(port)["mikrom_source_broken", ()] == 1
    assert UNSIGNED in json.loads(mikrom(fleet, "status", "-o", "json").stdout)["source"]["problem"]
    assert UNSIGNED in json.loads(mikrom(fleet, "get", "runs", "-o", "json").stdout)["runs"][0]["source_problem"]
    assert UNSIGNED in mikrom(fleet, "doctor").stdout
    assert UNSIGNED in mikrom(fleet, "plan", place, **signers).stderr

    repository.git("checkout", "-q", "--orphan", "other")
    forced = repository.signed("ana", WEB % 3)[:12]
    repository.git("branch", "-f", "main")
    assert f"main was forced. To take it all the same: `mikrom accept {forced}`" in asked(app, "sync_source")["problem"]
    taken = f"{forced} is used from now on.\n"
    assert [mikrom(fleet, "accept", commit).stdout for commit in (good, forced)] == ["", taken]

    policy.write_text("#!/bin/sh\necho 'three are too many' >&2\nexit 1\n")
    assert asked(app, "reconcile")["exit_code"] == 8
    assert "three are too many" in mikrom(fleet, "get", "runs", "-o", "json").stdout
    applied = mikrom(fleet, "apply", place, "--yes")
    assert (applied.returncode, "three are too many" in applied.stdout) == (8, True)
    policy.unlink()
    assert asked(app, "reconcile")["exit_code"] == 8, "no judgment is a no"
    assert len(json.loads(mikrom(fleet, "get", "vms", "-o", "json").stdout)["vms"]) == 2


def test_beat_leaves_a_rolled_back_project_alone_until_the_source_moves_on(
    fleet: Fleet, app: FleetApp, repository: Repository
) -> None:
    repository.commit(web=WEB % 2)
    fleet.worker("control", pool="threads", MIKROM_SPECS=f"git+file://{repository.folder}@main#specs")
    assert asked(app, "reconcile")["done"] == "2 create done"
    bad = repository.commit(web=WEB % 3)[:12]
    assert asked(app, "reconcile")["done"] == "1 create done"
    assert "1 deleted" in mikrom(fleet, "rollback", "--yes").stdout
    held = "nothing: project default was rolled back, and is left alone until its source moves on"
    for _ in range(2):
        told = asked(app, "reconcile")
        assert (told["exit_code"], told["done"].startswith(held)) == (0, True), told
    assert mikrom(fleet, "rollback", "--resume").returncode == 0
    assert asked(app, "reconcile")["done"] == "1 create done"
    assert mikrom(fleet, "rollback", "--to", "1", "--yes").returncode == 0
    repository.commit(web=WEB % 4)
    assert asked(app, "reconcile")["done"] == "2 create done"
    shown = json.loads(mikrom(fleet, "history", "--revisions", "-o", "json").stdout)["revisions"]
    assert [(one["number"], one["restores"], one["held"]) for one in shown] == [
        (6, 0, False), (5, 1, False), (4, 0, False), (3, 1, False), (2, 0, False), (1, 0, False),
    ]  # fmt: skip
    assert (shown[4]["run"]["revision"], shown[4]["run"]["author"]) == (bad, "a test <test@example.net>")

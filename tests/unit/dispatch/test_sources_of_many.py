"""Control workers that look at one source by turns: none follows what was forced past what another has followed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control.snapshot import Snapshots
from mikrom_reconcile.dispatch.control_worker.tasks import ControlTasks
from mikrom_reconcile.dispatch.transport.rpc import ReplySender
from tests.fleet import KEYS, Fleet
from tests.unit.control.test_signers import WEB, Signed

pytestmark = pytest.mark.redis


@pytest.fixture
def fleet(own_environment: Path) -> Iterator[Fleet]:
    fleet = Fleet(own_environment)
    yield fleet
    fleet.close()


@pytest.fixture
def repository(tmp_path: Path) -> Signed:
    return Signed(tmp_path / "repository")


def control(fleet: Fleet, repository: Signed, state: str, **more: str) -> ControlTasks:
    place = f"git+file://{repository.folder}@main#specs"
    settings = fleet.settings(MIKROM_SPECS=place, MIKROM_STATE_DIR=str(fleet.folder / state), **more)
    nobody = lambda: pytest.fail("it plans")  # noqa: E731
    return ControlTasks(
        fleet.redis,
        KEYS,
        settings,
        ReplySender(fleet.redis, KEYS, "control"),
        nobody,
        wiring.make_source(settings),
        nobody,
        Snapshots(nobody, {}, ""),
    )


def test_a_worker_that_has_not_looked_for_long_knows_what_others_followed(fleet: Fleet, repository: Signed) -> None:
    one, other = control(fleet, repository, "one"), control(fleet, repository, "other")
    first = repository.commit(web=WEB % 1)
    assert [each.sync_source()["revision"] for each in (one, other)] == [first[:12]] * 2
    second = repository.commit(web=WEB % 2)
    assert other.sync_source()["revision"] == second[:12]
    repository.git("reset", "-q", "--hard", first)
    forced = repository.commit(web=WEB % 3)
    for each in (one, other, control(fleet, repository, "new")):
        told = each.sync_source()
        assert (told["revision"], "was forced" in told["problem"]) == (second[:12], True)
    assert other.sync_source(accept=forced) == {"revision": forced[:12], "problem": ""}
    assert one.sync_source() == {"revision": forced[:12], "problem": ""}
    third = repository.commit(web=WEB % 4)
    assert one.sync_source() == {"revision": third[:12], "problem": ""}


def test_what_others_read_without_signatures_is_not_used_where_they_are_asked_for(
    fleet: Fleet, repository: Signed
) -> None:
    repository.commit(web=WEB % 1)
    assert control(fleet, repository, "one").sync_source()["problem"] == ""
    strict = control(fleet, repository, "other", MIKROM_GIT_ALLOWED_SIGNERS=str(repository.allowed))
    told = strict.sync_source()
    assert (told["revision"], "so nothing is planned" in told["problem"]) == ("", True)

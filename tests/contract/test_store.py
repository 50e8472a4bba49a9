"""What every store promises to a run, whatever it is made of."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mikrom_reconcile.control import revisions, run_log
from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.control.run_log import ROOM, RunLog
from mikrom_reconcile.control.stores.files import FileStore
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.encoding import texts_digest
from mikrom_reconcile.core.model.errors import BusyError, HeldError, SetupError, UsageError
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.plan import BEAT, ActionOutcome, Revision, RunRecord, RunRequest
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.times_and_sizes import RUNS
from tests.fleet import Fleet
from tests.samples import NOW, change, outcome, plan, record


@pytest.fixture(params=["files", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, own_environment: Path) -> Iterator[RunStore]:
    if request.param == "files":
        yield FileStore(own_environment / "store", own_environment / "locks")
        return
    fleet = Fleet(own_environment)
    try:
        yield RedisStore(fleet.redis, prefix="mikrom")
    finally:
        fleet.close()


def test_a_lease_is_held_by_one_and_whoever_wants_it_is_told_by_whom(store: RunStore) -> None:
    lease = store.lease("demo", holder="apply by ana@build7", ttl_s=5, at_least=1)
    assert lease.held()
    with pytest.raises(BusyError, match="demo is being changed by apply by ana@build7"):
        store.lease("demo", holder="beat", ttl_s=5, at_least=1)
    lease.release()
    assert not lease.held()
    store.lease("demo", holder="beat", ttl_s=5, at_least=1).release()


def test_leases_of_two_projects_do_not_know_each_other(store: RunStore) -> None:
    one = store.lease("one", holder="a", ttl_s=5, at_least=1)
    other = store.lease("other", holder="b", ttl_s=5, at_least=1)
    assert one.held()
    assert other.held()
    one.release()
    other.release()


def test_each_lease_has_a_higher_token_and_at_least_the_one_asked_for(store: RunStore) -> None:
    tokens = []
    for at_least in (1, 1, 40, 1, 41):
        lease = store.lease("demo", holder="a", ttl_s=5, at_least=at_least)
        tokens.append(lease.token)
        lease.release()
    assert tokens == [1, 2, 40, 41, 42]


def test_a_lease_that_was_released_twice_is_not_taken_from_the_next_holder(store: RunStore) -> None:
    first = store.lease("demo", holder="a", ttl_s=5, at_least=1)
    first.release()
    second = store.lease("demo", holder="b", ttl_s=5, at_least=1)
    first.release()
    assert second.held()
    with pytest.raises(BusyError, match="by b"):
        store.lease("demo", holder="c", ttl_s=5, at_least=1)
    second.release()


def test_a_lease_outlives_its_ttl_while_its_holder_lives(store: RunStore) -> None:
    lease = store.lease("demo", holder="a", ttl_s=2, at_least=1)
    time.sleep(2.5)
    assert lease.held()
    with pytest.raises(BusyError):
        store.lease("demo", holder="b", ttl_s=1, at_least=1)
    lease.release()


def test_of_many_who_want_a_lease_at_once_one_has_it_and_no_token_is_given_twice(store: RunStore) -> None:
    tokens: list[int] = []
    holding = threading.Lock()

    def work() -> None:
        for _ in range(10):
            try:
                lease = store.lease("demo", holder="a", ttl_s=5, at_least=1)
            except BusyError:
                continue
            assert holding.acquire(blocking=False), "two have it"
            tokens.append(lease.token)
            holding.release()
            lease.release()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) > 0
    assert tokens == sorted(set(tokens))


def test_placements_are_replaced_as_a_whole_and_empty_at_first(store: RunStore) -> None:
    assert store.placements("demo") == Placements()
    store.remember("demo", Placements(vms={"a": "hv01", "b": "hv02"}, covers=("hv01", "hv02")))
    store.remember("demo", Placements(vms={"c": "hv03"}, covers=("hv03",)))
    assert store.placements("demo") == Placements(vms={"c": "hv03"}, covers=("hv03",))
    assert store.placements("other") == Placements()


def at(seconds: int, run_id: str, *outcomes: ActionOutcome, **fields: Any) -> RunRecord:
    return record(run_id, *outcomes, finished_at=NOW + timedelta(seconds=seconds), **fields)


def test_the_latest_runs_come_first_and_old_ones_are_dropped(store: RunStore) -> None:
    for number in range(ROOM["silent"] + 2):
        store.save(at(number, f"run-{number}"))
    last = ROOM["silent"] + 1
    assert [kept.run_id for kept in store.runs(2)] == [f"run-{last}", f"run-{last - 1}"]
    assert len(store.runs(1000)) == ROOM["silent"]
    assert store.runs(0) == ()
    assert store.runs(1)[0] == at(last, f"run-{last}")


def test_silence_and_what_is_done_unattended_never_push_out_what_a_person_did(store: RunStore) -> None:
    store.save(at(0, "by-ana", outcome("a")))
    store.save(at(1, "by-beat", outcome("a"), origin=BEAT))
    for number in range(1, 2 * ROOM["silent"]):
        store.save(at(number, f"quiet-{number}"))
        store.save(at(number, f"refused-{number}", origin=BEAT, refused=(f"prune {number}",), exit_code=8))
    kept = {run.run_id for run in store.runs(10_000)}
    assert {"by-ana", "by-beat"} < kept
    assert len(kept) == ROOM["silent"] + 2


def test_scheduled_runs_that_come_to_the_same_are_kept_once_with_since_and_until(store: RunStore) -> None:
    for number in range(5):
        store.save(at(2 * number, f"refused-{number}", origin=BEAT, refused=("prune",), exit_code=8))
        store.save(at(2 * number + 1, f"quiet-{number}", origin=BEAT))
    quiet, refused = store.runs(10)
    assert (refused.run_id, refused.times, refused.since) == ("refused-4", 5, NOW)
    assert (quiet.run_id, quiet.times, quiet.finished_at) == ("quiet-4", 5, NOW + timedelta(seconds=9))


def test_runs_that_people_ask_for_are_each_kept_however_alike(store: RunStore) -> None:
    store.save(at(0, "one"))
    store.save(at(1, "other"))
    assert [(run.run_id, run.times) for run in store.runs(10)] == [("other", 1), ("one", 1)]


def test_what_lies_on_a_shelf_is_replaced_and_taken_away_by_its_name(store: RunStore) -> None:
    assert (store.shelf("one"), store.get("one", "a 1")) == ([], None)
    store.put("one", "a 1", b"first")
    store.put("one", "a 1", b"second")
    store.put("one", "../b 2", b"x")
    store.put("other", "a 1", b"y")
    assert (store.get("one", "a 1"), sorted(store.shelf("one"))) == (b"second", [b"second", b"x"])
    for _ in range(2):
        store.put("one", "a 1", None)
    assert (store.shelf("one"), store.get("one", "a 1"), store.shelf("other")) == ([b"x"], None, [b"y"])


def applied(store: RunStore, text: str, *, converged: bool = True, **asked: Any) -> Revision:
    """The revision of a run that applied these specs, as it is kept."""
    files = (SourceFile(path=f"{asked.pop('folder', 'specs')}/web.yml", text=text),)
    origin = asked.pop("origin", "apply by ana")
    request = RunRequest(run_id=text[:9], origin=origin, tree=SourceTree(revision="c", files=files), **asked)
    planned = plan()
    with RunLog(store, Clock(), request, planned, NOW, lambda _: None) as log:
        log.ended(planned if converged else plan(change("a")), late=False)
    return revisions.kept(store, "demo")[0]


def test_a_revision_is_kept_once_for_the_runs_of_the_same_specs_and_can_be_had_again(store: RunStore) -> None:
    first = applied(store, "one", converged=False)
    assert (first.number, first.exit_code, first.converged) == (1, 8, False)
    assert applied(store, "one", origin=BEAT, folder="elsewhere").converged
    second = applied(store, "two", extra_vars={"size": 3})
    every = revisions.kept(store)
    assert [(one.number, one.origin, one.converged) for one in every] == [
        (2, "apply by ana", True), (1, "apply by ana", True),
    ]  # fmt: skip
    assert revisions.applied(store, second)[1] == {"size": 3}
    assert revisions.applied(store, every[1])[0].files[0].text == "one"
    assert {run.number for run in store.runs(10)} == {1, 2}
    assert applied(store, "one", restores=1, held="x").number == 3, "what comes back is a revision of its own"


def test_a_number_that_several_projects_have_is_refused_without_its_project(store: RunStore) -> None:
    applied(store, "one")
    other = replace(revisions.kept(store)[0], project="other")
    revisions.keep(store, other)
    every = revisions.kept(store)
    assert revisions.named(every, "other/1") == other
    for name in ("1", None):
        with pytest.raises(UsageError, match="there are demo, other: name a revision as demo/1"):
            revisions.named(every, name)
    with pytest.raises(UsageError, match="there is no revision 2"):
        revisions.named(every, "2")


def test_old_revisions_make_room_but_never_the_current_one_nor_the_last_that_converged(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions, "RUNS", replace(RUNS, revisions=3))
    for number in range(5):
        applied(store, f"specs {number}", converged=number == 0)
    assert [one.number for one in revisions.kept(store)] == [5, 4, 3, 1]
    assert len(store.shelf("revisions-specs")) == 4
    monkeypatch.setattr(revisions, "RUNS", replace(RUNS, revisions_bytes=1))
    applied(store, "large")
    assert [one.number for one in revisions.kept(store)] == [6, 1], "as it began, 1 was the last good one"
    store.put("revisions-specs", f"demo {revisions.kept(store)[0].content}", b"of another release")
    with pytest.raises(UsageError, match="the specs of revision 6 cannot be read any more"):
        revisions.applied(store, revisions.kept(store)[0])
    store.put("revisions", "demo 7", b'{"of": "another release"}')
    assert [one.number for one in revisions.kept(store)] == [6, 1]


def test_a_project_that_was_rolled_back_is_left_alone_by_beat_until_its_source_moves_on(store: RunStore) -> None:
    applied(store, "good")
    applied(store, "bad")
    source = texts_digest(SourceTree(revision="", files=(SourceFile(path="x", text="bad"),)))
    assert applied(store, "good", restores=1, held=source).held == source
    with pytest.raises(HeldError, match="project demo was rolled back, and is left alone until its source moves on"):
        applied(store, "bad", origin=BEAT)
    assert applied(store, "better", origin=BEAT).held == ""
    assert [one.number for one in revisions.kept(store) if one.held] == []
    applied(store, "good", restores=1, held=source)
    assert revisions.resume(store, "ana") == ["demo"]
    assert applied(store, "bad", origin=BEAT).number == 6
    assert revisions.resume(store, "ana") == []


@pytest.mark.parametrize("origin", [BEAT, "apply by ana@build7"])
def test_a_run_is_kept_as_it_goes_on_and_once_it_has_ended_as_it_ended(store: RunStore, origin: str) -> None:
    for number, deeds in enumerate(((), (outcome("a"),), (outcome("a"), outcome("b")))):
        store.save(at(number, "r", *deeds, origin=origin, exit_code=None))
        assert [run.outcomes for run in store.runs(10)] == [deeds]
    store.save(at(3, "r", outcome("a"), outcome("b"), origin=origin))
    assert [(run.exit_code, len(run.outcomes), run.times) for run in store.runs(10)] == [(0, 2, 1)]


def test_what_another_release_wrote_in_another_shape_is_told_of_and_hides_nothing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(at(0, "good"))
    with monkeypatch.context() as patched:
        patched.setattr(run_log, "packed", lambda *_: b"a shape of tomorrow")
        store.save(at(1, "odd"))
    odd, good = store.runs(10)
    assert (odd.run_id, odd.finished_at, odd.conclusion) == (
        "odd", NOW + timedelta(seconds=1), "cannot be shown: another release wrote it",
    )  # fmt: skip
    assert good.run_id == "good"
    store.save(at(2, "odd"))
    assert store.runs(1) == (at(2, "odd"),)


@pytest.mark.redis
def test_a_host_that_was_broken_into_tells_lies_about_itself_only(
    own_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(own_environment)
    try:
        store = RedisStore(fleet.redis, prefix="mikrom")
        store.save(at(0, "true", outcome("a", host="hv01"), origin="supervision of hv01"))
        with monkeypatch.context() as patched:
            patched.setattr(run_log, "room_of", lambda _: "host:hv01")
            store.save(at(1, "of-ana", outcome("a", host="hv01")))
            store.save(at(2, "of-another", outcome("a", host="hv02"), origin="supervision of hv01"))
            store.save(at(3, "as-another", outcome("a", host="hv02"), origin="supervision of hv02"))
        assert [run.run_id for run in store.runs(10)] == ["true"]
    finally:
        fleet.close()


@pytest.mark.redis
def test_a_lease_in_a_redis_that_was_emptied_is_lost_and_its_token_grows_from_what_hosts_remember(
    own_environment: Path,
) -> None:
    fleet = Fleet(own_environment)
    try:
        store = RedisStore(fleet.redis, prefix="mikrom")
        lost = store.lease("demo", holder="a", ttl_s=0.3, at_least=7)
        fleet.redis.flushall()
        taken = store.lease("demo", holder="b", ttl_s=5, at_least=lost.token + 1)
        time.sleep(0.4)
        assert not lost.held()
        assert taken.held()
        assert taken.token == 8
        lost.release()
        assert taken.held()
        taken.release()
    finally:
        fleet.close()
    with pytest.raises(SetupError, match="the broker was lost"):
        store.placements("demo")


@pytest.mark.redis
def test_a_lease_ends_for_its_holder_too_when_redis_is_away_for_longer_than_its_ttl(own_environment: Path) -> None:
    fleet = Fleet(own_environment)
    try:
        lease = RedisStore(fleet.redis, prefix="mikrom").lease("demo", holder="a", ttl_s=0.3, at_least=1)
        assert lease.held()
    finally:
        fleet.close()
    time.sleep(0.4)
    assert not lease.held()
    lease.release()


@pytest.mark.redis
@pytest.mark.parametrize(
    "how", [OSError(9, "Bad file descriptor"), ValueError("I/O operation on closed file"), KeyError(7)]
)
def test_a_lease_outlives_every_way_in_which_a_socket_ends_and_its_thread_does_not_outlive_it(
    own_environment: Path, monkeypatch: pytest.MonkeyPatch, how: Exception
) -> None:
    fleet = Fleet(own_environment)
    try:
        lease = RedisStore(fleet.redis, prefix="mikrom").lease("demo", holder="a", ttl_s=0.3, at_least=1)
        failed = threading.Event()

        def fails(*_: object) -> None:
            failed.set()
            raise how

        with monkeypatch.context() as patched:
            patched.setattr(fleet.redis, "eval", fails)
            assert failed.wait(60)
        lease.release()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("lease ")]
    finally:
        fleet.close()

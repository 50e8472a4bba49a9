"""What a run expects of its hosts: the same from threads in its own process and from workers behind Redis."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from mikrom_reconcile.control.ports import Hosts
from mikrom_reconcile.core.model.desired import Halt, PinnedFile
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import Before, ObservedVM, ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, Verb
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.hosts.local import LocalHosts
from mikrom_reconcile.dispatch.hosts.remote import CeleryHosts
from tests.contract.hosts import await_threads
from tests.fakes import BIGGER, SPEC, desired_vm, order
from tests.fleet import KEYS, Fleet, wait_until
from tests.scratch import SCRATCH
from tests.slow_host import slow_host

BOOT_S = 0.2
HERE = "localhost"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="mk-", dir=SCRATCH) as folder:
        fleet = Fleet(Path(folder))
        try:
            yield fleet
        finally:
            fleet.close()


@pytest.fixture(
    scope="module", params=["local", *(pytest.param(p, marks=pytest.mark.redis) for p in ("gevent", "threads"))]
)
def hosts(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Hosts]:
    if request.param == "local":
        own = {"MIKROM_STATE_DIR": f"{fleet.folder}/local", "MIKROM_IMAGE_DIRS": f"{fleet.folder}/images"}
        yield LocalHosts(slow_host(fleet.settings(**own), BOOT_S))
        await_threads("mikrom-action")  # of orders whose time was over: they write into the folder that goes now
        return
    own = {
        "MIKROM_STATE_DIR": f"{fleet.folder}/{request.param}",
        "MIKROM_IMAGE_DIRS": f"{fleet.folder}/images",
        "MIKROM_TEST_BOOT_S": str(BOOT_S),
    }
    worker = fleet.worker("host", pool=request.param, **own)
    app = make_app(fleet.settings())
    yield CeleryHosts(app, fleet.redis)
    app.close()
    worker.kill()  # the end that takes no 4.5 s
    worker.wait()
    # the next one has another state folder
    fleet.redis.delete(KEYS.heartbeat(f"host:{HERE}"), KEYS.machine(HERE))


def create(vm: str) -> Order:
    return order("create", vm, host=HERE)


def creates(prefix: str, count: int) -> list[Order]:
    return [create(f"{prefix}-{number}") for number in range(count)]


def rows(hosts: Hosts, prefix: str) -> dict[str, ObservedVM]:
    (view,) = hosts.observe({HERE: ObserveQuery()}, deadline_s=30)
    assert view.report is not None, view.error
    return {row.name: row for row in view.report.vms if row.name.startswith(f"{prefix}-")}


def most_at_once(outcomes: list[ActionOutcome]) -> int:
    """How many of them were under way at the same moment, by the host's own clock."""
    moments = [(outcome.started_at, 1) for outcome in outcomes] + [(outcome.finished_at, -1) for outcome in outcomes]
    running = most = 0
    for _, step in sorted(moments):
        running += step
        most = max(most, running)
    return most


def test_the_host_can_be_addressed(hosts: Hosts) -> None:
    assert hosts.names() == (HERE,)


def test_every_order_has_one_outcome_and_what_it_made_is_observed(hosts: Hosts) -> None:
    outcomes = list(hosts.execute(creates("one", 9), forks=32, deadline_s=20))
    assert sorted((outcome.vm, outcome.result) for outcome in outcomes) == [(f"one-{n}", "done") for n in range(9)]
    seen = rows(hosts, "one")
    assert {row.phase for row in seen.values()} == {"running"}
    assert {outcome.vm: outcome.observed for outcome in outcomes} == seen


def test_no_more_than_forks_are_under_way_at_once(hosts: Hosts) -> None:
    outcomes = list(hosts.execute(creates("few", 7), forks=3, deadline_s=20))
    assert [outcome.result for outcome in outcomes] == ["done"] * 7
    assert 1 < most_at_once(outcomes) <= 3


def test_an_order_that_was_carried_out_before_has_no_second_effect(hosts: Hosts) -> None:
    twice = create("twice-0")
    (first,) = hosts.execute([twice], forks=1, deadline_s=20)
    (second,) = hosts.execute([twice], forks=1, deadline_s=20)
    assert (first.result, second.result) == ("done", "already_done")
    assert second.observed == first.observed


def test_what_is_up_not_for_long_enough_and_what_could_not_be_made_is_told(hosts: Hosts) -> None:
    young, never = creates("young", 2)
    desired = never.action.desired
    assert desired is not None
    spec = msgspec.structs.replace(desired.spec, image="no-such-image")
    never = order("create", never.action.vm, host=HERE, desired=msgspec.structs.replace(desired, host=HERE, spec=spec))
    for _ in hosts.execute([young, never], forks=2, deadline_s=20):
        pass
    query = ObserveQuery(project="shop", min_healthy_s={"web": 3600.0})
    (view,) = hosts.observe({HERE: query}, deadline_s=30)
    assert view.report is not None, view.error
    assert 3500 < view.report.maturing["young-0"] < 3600
    attempt = view.report.attempts["young-1"]
    assert (attempt.count, attempt.result, "no-such-image" in attempt.error) == (1, "failed_permanent", True)


def test_what_a_vm_was_healthy_with_before_is_told_and_it_can_go_back_there(hosts: Hosts) -> None:
    first, bigger = (desired_vm("back-0", spec, project="back") for spec in (SPEC, BIGGER))
    asked = ObserveQuery(project="back", trials={"web": 60.0}, before=True)  # a project whose tokens rise
    halt = Halt(spec_digest=bigger.spec_digest, why="it was no good", outcome="reverted")
    seen = None
    for token, wanted in enumerate((first, replace(bigger, rollout=0), replace(first, halt=halt)), start=1):
        verb: Verb = "restart" if seen else "create"
        given = order(verb, "back-0", seen, host=HERE, desired=replace(wanted, host=HERE), project="back", token=token)
        (outcome,) = hosts.execute([given], forks=1, deadline_s=20)
        assert (outcome.result, outcome.error) == ("done", None)
        seen = outcome.observed
        (view,) = hosts.observe({HERE: asked}, deadline_s=30)  # finds it healthy
    assert view.report is not None, view.error
    assert view.report.before == {"back-0": Before(spec=SPEC, token=1)}
    assert view.report.halts == {"back-0": halt}
    assert seen is not None
    assert seen.trial is not None
    assert (seen.spec, seen.trial.token, seen.token) == (SPEC, 1, 3)


def test_an_order_that_the_host_refuses_says_why_and_the_others_go_on(hosts: Hosts) -> None:
    good, other = creates("mixed", 2)
    desired = other.action.desired
    assert desired is not None
    spec = msgspec.structs.replace(desired.spec, image="no-such-image")
    action = msgspec.structs.replace(other.action, desired=msgspec.structs.replace(desired, spec=spec))
    bad = msgspec.structs.replace(other, action=action)
    results = {outcome.vm: outcome for outcome in hosts.execute([bad, good], forks=2, deadline_s=20)}
    assert results["mixed-0"].result == "done"
    assert results["mixed-1"].result == "failed_permanent"
    assert "no-such-image" in (results["mixed-1"].error or "")


def test_past_the_deadline_what_was_sent_has_failed_for_now_and_the_rest_is_skipped(hosts: Hosts) -> None:
    outcomes = list(hosts.execute(creates("late", 4), forks=2, deadline_s=BOOT_S / 2))
    results = [outcome.result for outcome in sorted(outcomes, key=lambda outcome: outcome.vm)]
    assert results == ["failed_temporary", "failed_temporary", "skipped", "skipped"]


def test_closing_the_iterator_sends_nothing_more_and_lets_go_on_what_runs(hosts: Hosts) -> None:
    pending = hosts.execute(creates("closed", 8), forks=2, deadline_s=20)
    next(pending)
    assert isinstance(pending, Generator)
    pending.close()
    wait_until(lambda: {row.phase for row in rows(hosts, "closed").values()} == {"running"}, "what was begun")
    time.sleep(3 * BOOT_S)
    assert 1 <= len(rows(hosts, "closed")) <= 4


def test_a_host_that_nobody_serves_is_unreachable_at_once_and_its_orders_fail_for_now(hosts: Hosts) -> None:
    began = time.monotonic()
    views = {view.host: view for view in hosts.observe({HERE: ObserveQuery(), "dark": ObserveQuery()}, deadline_s=20)}
    assert views[HERE].report is not None
    assert views["dark"].report is None
    assert views["dark"].error
    assert time.monotonic() - began < 10


def test_the_console_of_a_vm_comes_from_its_host_and_is_capped(hosts: Hosts) -> None:
    list(hosts.execute([create("talks-0")], forks=1, deadline_s=20))
    assert hosts.console(HERE, "talks-0", max_bytes=1000).content.startswith(b"MIKROM-UP")
    assert len(hosts.console(HERE, "talks-0", max_bytes=5).content) == 5
    assert hosts.console(HERE, "nobody", max_bytes=1000).content == b""


def test_the_console_of_a_host_that_nobody_serves_is_an_error(hosts: Hosts) -> None:
    with pytest.raises(MikromError):
        hosts.console("dark", "vm", max_bytes=10)


def test_each_host_fetches_its_images_and_tells_what_it_has_of_them(hosts: Hosts, fleet: Fleet) -> None:
    there = fleet.folder / "images"
    there.mkdir(exist_ok=True)
    (there / "kernel").write_bytes(b"kernel")
    kernel = PinnedFile(source=f"file://{there}/kernel", sha256=hashlib.sha256(b"kernel").hexdigest())
    bad = msgspec.structs.replace(kernel, sha256="0" * 64)
    asked = {HERE: (bad, kernel), "dark": (kernel,)}
    queries = {host: ObserveQuery(images=True, fetch=files, fetch_s=9) for host, files in asked.items()}
    views = {view.host: view for view in hosts.observe(queries, deadline_s=10)}
    report = views[HERE].report
    assert report is not None, views
    assert "the spec says 0000" in report.unfetched.pop("0" * 64)
    assert report.unfetched == {}
    assert [(file.sha256, file.size_bytes, file.vms) for file in report.images] == [(kernel.sha256, 6, 0)]
    assert views["dark"].error


def test_what_is_no_vms_name_reaches_no_file(hosts: Hosts) -> None:
    with pytest.raises(MikromError):
        hosts.console(HERE, "../../etc/passwd", max_bytes=10)

"""What a host reports: rows, drift, digests, and only as much as was asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Policy
from mikrom_reconcile.core.model.encoding import fleet_digest
from mikrom_reconcile.core.model.errors import SetupError, TemporaryError
from mikrom_reconcile.core.model.observed import Attempt, HostReport, ObserveQuery, VMMFacts
from mikrom_reconcile.host import observe
from mikrom_reconcile.host.observe import Observer
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.times_and_sizes import OBSERVING
from tests.fakes import HOST, SPEC, FakeDriver, HeldClock

NOW = HeldClock().now()
EMPTY = fleet_digest(())


def record_of(vm: str, project: str = "shop", fleet: str = "web") -> VMRecord:
    return VMRecord(
        vm=vm, uid=f"uid-{vm}", project=project, fleet=fleet, state="running", spec=SPEC, policy=Policy(),
        spec_digest="1:aa", generation=1, token=7, action_id="1:bb", created_at=NOW,
    )  # fmt: skip


class Host:
    """web-000 and web-001 of `shop` run, db-000 of `shop` and cms-000 of `blog` too."""

    def __init__(self, state_dir: Path) -> None:
        self.records = Records(state_dir)
        self.driver = FakeDriver()
        self.path = state_dir
        for record in (
            record_of("web-000"),
            record_of("web-001"),
            record_of("db-000", fleet="db"),
            record_of("cms-000", project="blog", fleet="cms"),
        ):
            self.records.write(record)
            self.driver.vmms[record.vm] = record.spec
        self.records.advance_token("shop", 7)
        self.records.advance_token("blog", 3)

    def report(self, project: str | None = None, known: dict[str, str] | None = None) -> HostReport:
        return self.ask(ObserveQuery(project=project, known=known or {}))

    def ask(self, query: ObserveQuery) -> HostReport:
        return Observer(HOST, driver=self.driver, records=self.records).report(query, NOW)

    def names(self, project: str | None, known: dict[str, str]) -> list[str]:
        return [row.name for row in self.report(project, known).vms]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_a_project_every_vm_has_a_row_and_every_project_its_token(host: Host) -> None:
    report = host.report()
    assert [row.name for row in report.vms] == ["cms-000", "db-000", "web-000", "web-001"]
    assert {row.phase for row in report.vms} == {"running"}
    assert report.highest_tokens == {"blog": 3, "shop": 7}
    assert report.digests == {}
    assert report.capacity.vcpu_count >= 1
    assert report.capacity.mem_size_mib > 100


def test_a_row_is_the_record_beside_the_facts(host: Host) -> None:
    [row] = [row for row in host.report().vms if row.name == "web-000"]
    record = record_of("web-000")
    for field in VMRecord.__struct_fields__:
        if field not in {"vm", "action_id", "crash_loop", "damage", "made_as", "before", "boot_id"}:
            assert getattr(row, field) == getattr(record, field), field
    assert (row.host, row.pid, row.drift) == (HOST, 1, ())


def test_fleets_that_are_as_expected_send_no_rows(host: Host) -> None:
    digests = host.report("shop").digests
    web = [("web-000", "1:aa", "running", ()), ("web-001", "1:aa", "running", ())]
    assert digests == {"web": fleet_digest(web), "db": fleet_digest([("db-000", "1:aa", "running", ())])}
    report = host.report("shop", digests)
    assert report.vms == ()
    assert report.digests == digests
    assert report.highest_tokens == {"shop": 7}


def test_only_the_fleet_that_differs_sends_its_rows_and_then_other_projects_do_too(host: Host) -> None:
    digests = host.report("shop").digests
    del host.driver.vmms["db-000"]
    assert host.names("shop", digests) == ["cms-000", "db-000"]


def test_rows_of_other_projects_come_when_they_are_asked_for_though_no_fleet_differs(host: Host) -> None:
    query = ObserveQuery(project="new", others=True)
    report = Observer(HOST, driver=host.driver, records=host.records).report(query, NOW)
    assert [row.name for row in report.vms] == ["cms-000", "db-000", "web-000", "web-001"]
    assert host.names("new", {}) == []


def test_a_fleet_that_is_expected_and_not_here_counts_as_different(host: Host) -> None:
    digests = host.report("shop").digests
    assert host.names("shop", {**digests, "cache": "1:something"}) == ["cms-000"]
    assert host.names("shop", {**digests, "cache": EMPTY}) == []


def test_a_fleet_that_nobody_expects_sends_its_rows(host: Host) -> None:
    digests = host.report("shop").digests
    del digests["web"]
    assert host.names("shop", digests) == ["cms-000", "web-000", "web-001"]


def test_what_is_not_up_for_long_enough_is_told_with_the_time_that_is_left(host: Host) -> None:
    host.driver.facts["web-000"] = VMMFacts(status="running", age_s=4.0)
    host.driver.facts["web-001"] = VMMFacts(status="running", age_s=10.5)
    host.records.note_attempt("web-002", Attempt(spec_digest="1:cc", count=1))
    query = ObserveQuery(project="shop", min_healthy_s={"web": 10.0})
    report = Observer(HOST, driver=host.driver, records=host.records).report(query, NOW)
    assert report.maturing == {"web-000": 6.0}
    assert report.attempts == {"web-002": Attempt(spec_digest="1:cc", count=1)}
    host.driver.facts["web-000"] = VMMFacts(status="none", end="killed")
    assert Observer(HOST, driver=host.driver, records=host.records).report(query, NOW).maturing == {}, "it is down"


def test_an_unreadable_record_is_reported_whatever_was_asked(host: Host) -> None:
    digests = host.report("blog").digests
    (host.path / "vms/web-001/record.json").write_text("{")
    (host.path / "copies/web-001.json").unlink()
    for row in (*host.report("blog", digests).vms, *[r for r in host.report().vms if r.phase == "unreadable"]):
        assert (row.name, row.phase, row.project) == ("web-001", "unreadable", "")
        assert row.last_error is not None
        assert "record.json" in row.last_error
    assert host.names("shop", host.report("shop").digests) == ["web-001"]


def test_a_record_that_was_read_from_its_copy_is_drift(host: Host) -> None:
    (host.path / "vms/web-001/record.json").unlink()
    (drift,) = next(row.drift for row in host.report().vms if row.name == "web-001")
    assert (drift.path, drift.recorded) == ("record", "as it was written")
    assert str(drift.actual).endswith("record.json is gone")


def test_records_that_cannot_be_listed_are_no_empty_report(tmp_path: Path) -> None:
    (tmp_path / "vms").write_text("")
    with pytest.raises(SetupError):
        Observer(HOST, driver=FakeDriver(), records=Records(tmp_path)).report(ObserveQuery(), NOW)


def test_a_vm_with_an_error_and_no_vmm_has_failed(host: Host) -> None:
    failed = replace(record_of("web-000"), last_error="no kernel")
    host.records.write(failed)
    phases = {row.name: row.phase for row in host.report().vms}
    assert phases["web-000"] == "running", "an error of the past does not make a running VM failed"
    del host.driver.vmms["web-000"]
    [row] = [row for row in host.report().vms if row.name == "web-000"]
    assert (row.phase, row.last_error) == ("failed", "no kernel")


def test_vms_that_do_not_answer_are_waited_for_together(host: Host) -> None:
    all_looked_at = threading.Barrier(4, timeout=5)

    class Slow(FakeDriver):
        def observe(self, record: VMRecord) -> VMMFacts:
            all_looked_at.wait()
            return VMMFacts(status="unresponsive", pid=1)

    host.driver = Slow()
    assert {row.phase for row in host.report().vms} == {"unresponsive"}


def test_looking_changes_nothing(host: Host) -> None:
    before = {path: path.stat().st_mtime_ns for path in host.path.rglob("*")}
    host.report()
    host.report("shop")
    assert {path: path.stat().st_mtime_ns for path in host.path.rglob("*")} == before
    assert host.driver.calls == []


def test_a_vm_that_cannot_be_looked_at_is_unreadable_and_the_others_are_reported(host: Host) -> None:
    host.driver.faults["observe"] = [TemporaryError("Too many open files", vm="web-000", step="observing it")]
    rows = host.report().vms
    (unseen,) = [row for row in rows if row.phase == "unreadable"]
    assert "Too many open files" in (unseen.last_error or "")
    assert len(rows) == 4
    assert {row.phase for row in rows if row is not unseen} == {"running"}


def test_what_vms_are_promised_is_told_whatever_was_asked(host: Host) -> None:
    known = {fleet: host.report("shop").digests[fleet] for fleet in ("web", "db")}
    host.records.write(replace(record_of("web-002"), state="stopped"))
    host.records.write(replace(record_of("web-003"), crash_loop=True))
    promised = host.report("shop", known).promised
    machine = SPEC.machine
    assert (promised.vcpu_count, promised.mem_size_mib) == (4 * machine.vcpu_count, 4 * machine.mem_size_mib)


@pytest.mark.parametrize(("takes_mib", "overhead_mib"), [(128, 0), (150, 22), (0, None)])
def test_what_a_vmm_itself_takes_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, takes_mib: int, overhead_mib: int | None
) -> None:
    monkeypatch.setattr(host.driver, "memory_mib", lambda spec: takes_mib)
    report = host.report("shop")
    assert report.overhead_mib == overhead_mib
    assert report.promised.mem_size_mib == 4 * (SPEC.machine.mem_size_mib + (overhead_mib or 0))


class Silent(FakeDriver):
    """VMs of the fleet `mute` do not answer before `may_answer` is set; once all others were seen, `all_seen` is."""

    def __init__(self, others: int) -> None:
        super().__init__()
        self.may_answer = threading.Event()
        self.all_seen = threading.Event()
        self._left = others
        self._lock = threading.Lock()

    def observe(self, record: VMRecord) -> VMMFacts:
        if record.fleet == "mute":
            assert self.may_answer.wait(60)
        else:
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self.all_seen.set()
        return super().observe(record)


def silent_host(folder: Path, *, mute: int, others: int) -> Host:
    host = Host(folder)
    host.driver = driver = Silent(4 + others)
    for number in range(mute):
        host.records.write(record_of(f"a-{number:03d}", fleet="mute"))
    for number in range(others):
        host.records.write(record_of(f"web-{number + 2:03d}"))
    for record in host.records.list():
        assert isinstance(record, VMRecord)
        driver.vmms[record.vm] = record.spec
    return host


def test_vms_that_do_not_answer_keep_no_others_waiting(tmp_path: Path) -> None:
    host = silent_host(tmp_path, mute=100, others=30)
    driver = host.driver
    assert isinstance(driver, Silent)

    def answer() -> None:
        if driver.all_seen.wait(60):
            driver.may_answer.set()

    threading.Thread(target=answer).start()
    assert {row.phase for row in host.report().vms} == {"running"}


def test_a_host_reports_what_it_has_by_its_deadline_and_names_the_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = silent_host(tmp_path, mute=3, others=0)
    driver = host.driver
    assert isinstance(driver, Silent)
    monkeypatch.setattr(observe, "OBSERVING", replace(OBSERVING, report_s=0.5, others_s=0.5))
    for project in (None, "shop"):
        silent = [row for row in host.report(project).vms if row.phase == "unreadable"]
        assert [row.name for row in silent] == ["a-000", "a-001", "a-002"]
        assert "did not answer within 0.5 s" in (silent[0].last_error or "")
        assert silent[0].spec == SPEC
    assert driver.all_seen.is_set()
    driver.may_answer.set()

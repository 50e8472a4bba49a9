"""The commands that only look, over hosts of which some are dark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from jsonschema import Draft202012Validator

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import entry
from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.observed import (
    CachedFile,
    Capacity,
    Console,
    HostReport,
    HostView,
    ObservedVM,
    ObserveQuery,
)
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, RunRecord
from mikrom_reconcile.services import commands
from mikrom_reconcile.settings import Settings
from tests.command import SCHEMAS
from tests.samples import NOW, observed

SPECS = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec: {replicas: 2, template: {image: hello}}
"""


class FakeHosts:
    """Hosts with these VMs; None is a dark host."""

    def __init__(self, hosts: Mapping[str, tuple[ObservedVM, ...] | None]) -> None:
        self._hosts = hosts

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        return tuple(sorted(self._hosts))

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        for host in sorted(queries, reverse=True):
            vms = self._hosts[host]
            if vms is None:
                yield HostView(host=host, error="gave no answer")
            else:
                capacity = Capacity(vcpu_count=2, mem_size_mib=4096)
                report = HostReport(host=host, observed_at=NOW, capacity=capacity, vms=vms)
                cached = (CachedFile(sha256="a" * 64, size_bytes=1 << 20, vms=2, last_used_at=NOW),)
                images = cached if queries[host].images else ()
                lacks = {file.sha256: "https://x/rootfs: 404" for file in queries[host].fetch if file.sha256[0] == "b"}
                yield HostView(host=host, report=msgspec.structs.replace(report, images=images, unfetched=lacks))

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:
        raise AssertionError("a command that looks gives no order")

    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        content = f"console of {vm} on {host}\x1b[31m\r\nline 2\n".encode()
        return Console(content=content, end=len(content))


class FakeStore:
    def runs(self, limit: int) -> tuple[RunRecord, ...]:
        return ()

    def shelf(self, shelf: str) -> list[bytes]:
        return []


class FakeEngine:
    def __init__(self, hosts: FakeHosts) -> None:
        self.hosts = hosts
        self.store = cast("RunStore", FakeStore())

    def source(self) -> None:
        return None


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    def use(**hosts: tuple[ObservedVM, ...] | None) -> None:
        monkeypatch.setattr(wiring, "open_engine", lambda _: FakeEngine(FakeHosts(hosts)))

    monkeypatch.chdir(tmp_path)
    return use


def shown(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_vms_of_all_hosts_are_listed_by_name(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine_of(hv01=(observed("b", host="hv01"),), hv02=(observed("a", host="hv02"),))
    assert entry.run(["get", "vms", "-o", "json"]) == 0
    assert [(vm["name"], vm["host"]) for vm in json.loads(shown(capsys)[0])["vms"]] == [("a", "hv02"), ("b", "hv01")]


def test_vms_are_selected_by_name_and_by_limit_and_a_word_that_matches_none_is_a_mistake(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine_of(hv01=(observed("web-000", host="hv01"), observed("web-001", host="hv01")), hv02=(observed("db-000"),))

    def listed(*words: str, code: int = 0) -> str:
        assert entry.run(["get", "vms", *words]) == code
        out, err = shown(capsys)
        return err or " ".join(line.split()[0] for line in out.splitlines()[1:])

    assert listed("web-001", "db-000") == "db-000 web-001"
    assert listed("--limit", "hv01:!web-000") == "web-001"
    assert listed("web-000", "--limit", "hv01") == "web-000"
    assert "did you mean web-00" in listed("web-00", code=64)
    assert "nosuch" in listed("--limit", "nosuch", code=64)
    assert "no VM in common" in listed("db-000", "--limit", "hv01", code=64)


def test_a_dark_host_is_named_on_stderr_and_in_the_exit_code(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine_of(hv01=(observed("b", host="hv01"),), hv02=None)
    assert entry.run(["get", "vms"]) == 4
    out, err = shown(capsys)
    assert "\nb  " in out
    assert err == "warning: host hv02 could not be read: gave no answer; its VMs are not shown\n"


def test_status_tells_of_dark_hosts_and_ends_with_4(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine_of(hv01=(), hv02=None)
    assert entry.run(["status"]) == 4
    assert "could not be read: gave no answer" in shown(capsys)[0]


def test_status_tells_of_a_vm_that_several_hosts_have_and_ends_with_2(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine_of(hv01=(observed("a", host="hv01"),), hv02=(observed("a", host="hv02"), observed("b", host="hv02")))
    assert entry.run(["status"]) == 2
    assert "warning: a is on 2 hosts" in shown(capsys)[1]
    engine_of(hv01=(observed("a", host="hv01"),), hv02=(observed("a", host="hv02"),), hv03=None)
    assert entry.run(["status"]) == 6


def test_status_goes_on_without_the_specs_when_those_are_wrong(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine_of(hv01=(observed("web-000", host="hv01", project="default"),))
    (tmp_path / "specs").mkdir()
    specs = tmp_path / "specs" / "web.yml"
    specs.write_text(SPECS)
    assert entry.run(["status", "-o", "json"]) == 0
    assert json.loads(shown(capsys)[0])["fleets"][0]["wanted"] == 2
    specs.write_text("kind: Nonsense\n")
    assert entry.run(["status", "-o", "json"]) == 0
    out, err = shown(capsys)
    assert json.loads(out)["fleets"][0]["wanted"] is None
    assert "`mikrom validate` tells more" in err


def test_status_of_a_place_that_was_named_and_is_not_there_is_an_error(engine_of: Callable[..., None]) -> None:
    engine_of(hv01=())
    assert entry.run(["status"]) == 0
    assert entry.run(["status", "nowhere"]) == 64


def test_logs_come_from_the_host_whose_vm_was_changed_last(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine_of(hv01=(observed("a", host="hv01", token=7),), hv02=(observed("a", host="hv02", token=8),))
    assert entry.run(["logs", "a"]) == 0
    assert shown(capsys)[0] == "console of a on hv02\nline 2\n"
    assert entry.run(["logs", "a", "--tail", "1"]) == 0
    assert shown(capsys)[0] == "line 2\n"


def test_logs_of_an_unknown_vm_name_the_hosts_that_could_not_be_read(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine_of(hv01=(), hv02=None)
    assert entry.run(["logs", "a"]) == 64
    assert "could not be read: hv02" in shown(capsys)[1]


WITH_IMAGE = f"""\
apiVersion: mikrom/v1
kind: Inventory
metadata: {{name: all}}
spec: {{hosts: {{hv01: {{}}, hv02: {{}}}}}}
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: linux}}
spec:
  kernel: {{source: "https://x/kernel", sha256: {"a" * 64}}}
  rootfs: {{source: "https://x/rootfs", sha256: {"b" * 64}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {{name: web}}
spec: {{replicas: 2, hosts: hv01, template: {{image: linux}}}}
"""


def test_images_are_listed_with_what_each_host_has_and_lacks(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine_of(hv01=(), hv02=())
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "web.yml").write_text(WITH_IMAGE)
    assert entry.run(["images"]) == 0
    rows = [line.split() for line in shown(capsys)[0].splitlines()]
    assert [row[:6] for row in rows[1:]] == [
        ["hv01", "linux", "kernel", "a" * 12, "1", "MiB"],
        ["hv01", "linux", "rootfs", "b" * 12, "-", "-"],
        ["hv02", "linux", "kernel", "a" * 12, "1", "MiB"],
    ]
    assert rows[2][-1] == "missing"


def test_what_one_host_cannot_fetch_is_told_and_keeps_no_other_host_from_it(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine_of(hv01=(), hv02=None)
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "web.yml").write_text(WITH_IMAGE)
    assert entry.run(["images", "--fetch"]) == 2 | 4
    out, err = shown(capsys)
    assert "hv01: https://x/rootfs: 404" in out
    assert "host hv02 could not be asked: gave no answer" in err
    assert entry.run(["images", "--fetch", "-o", "json"]) == 2 | 4
    assert [sorted(host["failed"]) for host in json.loads(shown(capsys)[0])["hosts"]] == [["b" * 64], []]


def test_a_host_that_cannot_be_asked_is_told_and_hides_no_other(
    engine_of: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    engine_of(hv01=(), hv02=None)
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "web.yml").write_text(WITH_IMAGE)
    assert entry.run(["images"]) == 4
    assert "host hv02 could not be asked: gave no answer" in shown(capsys)[1]
    assert entry.run(["images", "-o", "json"]) == 4
    told = json.loads(shown(capsys)[0])
    Draft202012Validator({"$ref": "#/$defs/images", "$defs": SCHEMAS["$defs"]}).validate(told)
    assert [(host["host"], len(host["needed"]), len(host["cached"]), host["error"]) for host in told["hosts"]] == [
        ("hv01", 2, 1, ""),
        ("hv02", 0, 0, "gave no answer"),
    ]


@pytest.mark.parametrize(
    ("words", "service"),
    [
        (["worker"], "host"),
        (["worker", "--role", "host"], "host"),
        (["worker", "--role", "control"], "control"),
        (["beat"], "beat"),
        (["flower"], "flower"),
    ],
)
def test_services_become_what_their_name_says(words: list[str], service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, str]] = []

    def become(service: str, settings: Settings) -> None:
        became.append((service, settings.worker_role))

    monkeypatch.setattr(commands, "become", become)
    assert entry.run(words) == 0
    assert [name for name, _ in became] == [service]


def test_a_worker_without_a_role_has_that_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []
    monkeypatch.setattr(commands, "become", lambda service, _: became.append(service))
    monkeypatch.setenv("MIKROM_WORKER_ROLE", "control")
    entry.run(["worker"])
    entry.run(["worker", "--role", "host"])
    assert became == ["control", "host"]


def test_up_runs_the_specs_once_unless_it_is_told_not_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[bool] = []

    def fake_up(settings: Settings, *, run: bool, tell: Callable[[str], None]) -> int:
        asked.append(run)
        tell("ready\x1b[2J")
        return 0

    monkeypatch.setattr("mikrom_reconcile.services.commands.up", fake_up)
    assert entry.run(["up"]) == 0
    assert entry.run(["up", "--no-run"]) == 0
    assert asked == [True, False]
    assert shown(capsys)[1] == "ready\ufffd[2J\n" * 2


def test_a_service_that_cannot_start_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def become(service: str, settings: Settings) -> None:
        raise SetupError("no answer from the broker")

    monkeypatch.setattr(commands, "become", become)
    assert entry.run(["beat"]) == 1
    assert shown(capsys)[1] == "error: no answer from the broker\n"

"""`mikrom` as a process of its own, on the simulated driver: what a user types, sees and gets as exit code."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mikrom_reconcile.control.stores.files import FileStore
from tests.command import AS_A_PROGRAM, WEB, Mikrom, document, names, write_specs
from tests.full_disk import fill, small_disk

CRASHING = "  template: {image: hello, boot_args: 'mikrom.mode=crash:0'}\n"
SLOWLY = (
    "import sys; from mikrom_reconcile import wiring; from tests.slow_host import slow_host;"
    "wiring.make_host_agent = lambda settings: slow_host(settings, 1.5);"
    "from mikrom_reconcile.__main__ import main; sys.exit(main())"
)


def test_specs_become_vms_and_then_there_is_nothing_to_change(mikrom: Mikrom) -> None:
    assert "3 documents" not in mikrom("validate").stdout
    assert mikrom("validate").stdout == "2 documents, 3 VMs in 1 fleet: fine\n"
    planned = document("plan", mikrom("plan", "--detailed-exitcode", "-o", "json", code=2))
    assert planned["summary"]["create"] == 3
    assert names(mikrom) == []

    done = mikrom("apply", "--yes")
    assert "+ create   web-[000-002] on localhost: does not exist" in done.stdout
    assert "localhost   ok=3   changed=3   failed=0   unreachable=0   refused=0" in done.stdout
    assert sorted(line.split()[1] for line in done.stderr.splitlines()) == ["web-000", "web-001", "web-002"]
    assert names(mikrom) == ["web-000", "web-001", "web-002"]

    assert "Nothing to change: 3 VMs as specified." in mikrom("plan", "--detailed-exitcode").stdout
    again = document("run", mikrom("apply", "--yes", "-o", "json"))
    assert (again["outcomes"], again["converged"], again["exit_code"]) == ([], True, 0)


def test_json_of_an_apply_is_the_plan_with_its_outcomes(mikrom: Mikrom) -> None:
    done = mikrom("apply", "--yes", "-o", "json")
    run = document("run", done)
    assert run["summary"]["create"] == 3
    assert sorted((told["vm"], told["verb"], told["result"]) for told in run["outcomes"]) == [
        (f"web-00{n}", "create", "done") for n in range(3)
    ]


def test_without_a_terminal_and_without_yes_nothing_is_done(mikrom: Mikrom) -> None:
    for command in ("apply", "destroy"):
        assert "--yes" in mikrom(command, code=64).stderr
    assert names(mikrom) == []
    assert mikrom("apply", "--check").stdout == mikrom("plan").stdout


def test_a_mistyped_option_is_no_pending_change(mikrom: Mikrom) -> None:
    for words in (["plan", "--detailed-exitcodes"], ["aply"], ["apply", "--prune-max", "lots"], ["get", "vm"]):
        mikrom(*words, code=64)


def test_removals_over_the_share_are_refused_until_they_are_allowed(mikrom: Mikrom, folder: Path) -> None:
    mikrom("apply", "--yes")
    write_specs(folder, WEB % 1)
    assert "prune" in mikrom("plan", code=8).stdout
    refused = mikrom("apply", "--yes", code=8)
    assert "--prune-max" in refused.stdout
    assert "refused=2" in refused.stdout
    assert len(names(mikrom)) == 3
    mikrom("apply", "--yes", "--prune-max", "100%")
    assert names(mikrom) == ["web-000"]


def test_destroy_removes_what_the_specs_own(mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")
    assert "3 deleted" in mikrom("destroy", "--yes").stdout
    assert names(mikrom) == []


def test_a_vm_that_does_not_stay_up_is_a_failure(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, (WEB % 1).replace("  template: {image: hello, machine: {mem_size_mib: 16}}\n", CRASHING))
    done = mikrom("apply", "--yes", code=2)
    assert "failed=1" in done.stdout


def test_every_mistake_in_the_specs_is_told_at_once_with_its_place(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, (WEB % 3).replace("replicas: 3", "replicas: three").replace("image: hello", "image: [1]"))
    for command in (["validate"], ["plan"], ["apply", "--yes"]):
        told = mikrom(*command, code=1)
        assert "specs/web.yml:9:13: spec.replicas must be a whole number" in told.stderr
        assert told.stderr.count("specs/web.yml:") >= 2
        assert told.stdout == ""
    problems = document("validation", mikrom("validate", "-o", "json", code=1))["problems"]
    assert problems[0]["line"] == 9
    assert names(mikrom) == []


@pytest.mark.parametrize("words", [["plan", "nowhere"], ["plan", "empty"], ["apply", "--yes", "empty"]])
def test_a_place_without_specs_is_an_error_and_no_order_to_delete(
    words: list[str], mikrom: Mikrom, folder: Path
) -> None:
    mikrom("apply", "--yes")
    (folder / "empty").mkdir()
    assert mikrom(*words, code=64).stderr.startswith("error: ")
    assert len(names(mikrom)) == 3


def test_a_lease_that_is_held_is_waited_for_until_the_timeout_and_its_holder_named(
    mikrom: Mikrom, folder: Path
) -> None:
    store = FileStore(folder / "state" / "store", folder / "state" / "locks")
    lease = store.lease("demo", holder="apply by ana@build7", ttl_s=15, at_least=1)
    began = time.monotonic()
    told = mikrom("apply", "--yes", "--timeout", "1", code=16).stderr
    assert "apply by ana@build7" in told
    assert str(os.getpid()) in told
    assert time.monotonic() - began < 10
    lease.release()
    mikrom("apply", "--yes")


def test_a_deadline_is_kept_although_actions_take_longer(mikrom: Mikrom, folder: Path) -> None:
    began = time.monotonic()
    done = mikrom("apply", "--yes", "--timeout", "0.8", "--forks", "1", program=("-c", SLOWLY), code=None)
    assert time.monotonic() - began < 10
    assert done.returncode & 16
    assert "the deadline passed first" in done.stdout
    mikrom("apply", "--yes")


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def ended_by(request: pytest.FixtureRequest) -> signal.Signals:
    number: signal.Signals = request.param
    return number


def test_a_signal_ends_a_run_its_deeds_are_kept_and_the_next_run_goes_on(
    mikrom: Mikrom, folder: Path, ended_by: signal.Signals
) -> None:
    argv = [sys.executable, "-c", SLOWLY, "apply", "--yes", "--forks", "1"]
    with subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        first = running.stderr.readline().split()[1]  # it is there, the second is being made
        running.send_signal(ended_by)
        told = running.stderr.read()
    (run,) = document("runs", mikrom("history", "-o", "json"))["runs"]
    known = (
        1 if ended_by == signal.SIGKILL else len(names(mikrom))
    )  # what was under way is brought to its end, and told
    assert [deed["reasons"] for deed in run["outcomes"]] == [["does not exist"]] * known
    assert mikrom("events").stdout.count("\n") == known
    assert run["outcomes"][0]["vm"] == first
    if ended_by == signal.SIGKILL:
        assert run["exit_code"] is None
        assert run["conclusion"].startswith("In progress")
    else:
        said = "Ctrl-C" if ended_by == signal.SIGINT else ended_by.name
        assert (running.returncode, run["exit_code"]) == (130, 130)
        assert f"Interrupted by {said}: nothing more was begun" in told
        assert run["conclusion"].startswith(f"Interrupted by {said}")
        assert run["conclusion"].endswith(f": {known} created.")
    assert "Traceback" not in told
    assert 1 <= len(names(mikrom)) < 3
    mikrom("apply", "--yes")
    assert len(names(mikrom)) == 3
    before = document("runs", mikrom("history", "-o", "json"))["runs"][-1]["conclusion"]
    assert before.startswith("Killed" if ended_by == signal.SIGKILL else "Interrupted by")


def test_a_reader_that_goes_away_is_no_error_worth_a_word(folder: Path) -> None:
    (folder / "specs" / "web.yml").write_text(WEB % 500)
    argv = [sys.executable, "-m", "mikrom_reconcile", "plan", "-o", "json"]
    with subprocess.Popen(
        argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


def test_an_output_that_knows_only_ascii_is_no_reason_to_fail(
    mikrom: Mikrom, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    mikrom("apply", "--yes")
    write_specs(folder, (WEB % 3).replace("16", "32"))
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert "machine.mem_size_mib: 16 ? 32" in mikrom("plan", program=AS_A_PROGRAM).stdout


def test_logs_show_the_end_of_a_console(mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")
    whole = mikrom("logs", "web-001").stdout
    assert whole.startswith("MIKROM-UP ")
    assert mikrom("logs", "web-001", "--tail", "1").stdout == whole.splitlines(keepends=True)[-1]
    assert "`mikrom get vms`" in mikrom("logs", "web-999", code=64).stderr


def test_status_is_one_screen_with_and_without_specs(mikrom: Mikrom, folder: Path) -> None:
    assert "No run so far." in mikrom("status").stdout
    mikrom("apply", "--yes")
    text = mikrom("status").stdout
    assert "Converged in" in text
    status = document("status", mikrom("status", "-o", "json"))
    (fleet,) = status["fleets"]
    assert (fleet["wanted"], fleet["vms"], fleet["running"]) == (3, 3, 3)
    assert (status["last_run"]["done"], status["last_run"]["exit_code"]) == (3, 0)
    (folder / "specs" / "web.yml").unlink()
    (fleet,) = document("status", mikrom("status", "-o", "json"))["fleets"]
    assert (fleet["wanted"], fleet["running"]) == (None, 3)


def test_a_broken_store_costs_nothing(mikrom: Mikrom, folder: Path) -> None:
    mikrom("apply", "--yes")
    for path in (folder / "state" / "store").rglob("*"):
        if path.is_file():
            path.write_bytes(b"no store")
    mikrom("apply", "--yes")
    assert "another release wrote it" in mikrom("history").stdout
    assert len(names(mikrom)) == 3


def test_on_a_full_disk_vms_are_looked_at_stopped_and_deleted(mikrom: Mikrom, folder: Path) -> None:
    with small_disk(folder / "state", kib=1024):
        mikrom("apply", "--yes")
        fill(folder / "state")
        assert "Converged in" in mikrom("status").stdout
        assert "Nothing to change" in mikrom("plan").stdout
        assert "3 created" in mikrom("history").stdout
        told = mikrom("stop", "web-000")
        assert told.stderr.count("going on without") == 1
        mikrom("delete", "web-001", "--yes")
        mikrom("destroy", "--yes")
        assert names(mikrom) == []


def test_doctor_lists_every_setting_masks_secrets_and_fails_when_something_needed_is_broken(
    mikrom: Mikrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "ana:hunter2")
    done = mikrom("doctor", "-o", "json")
    found = document("doctor", done)
    assert not found["broken"]
    settings = {line["variable"]: line for line in found["settings"]}
    assert settings["FLOWER_BASIC_AUTH"]["value"] == "***"
    assert settings["MIKROM_DRIVER"] == {
        "variable": "MIKROM_DRIVER", "value": "simulated", "source": "environment",
        "doc": settings["MIKROM_DRIVER"]["doc"],
    }  # fmt: skip
    assert settings["MIKROM_FORKS"]["source"] == "default"
    assert "hunter2" not in done.stdout + mikrom("doctor").stdout
    limits = {(line["group"], line["name"]): line["value"] for line in found["limits"]}
    assert limits["broker", "heartbeat_interval_s"] == 5.0
    assert "broker: heartbeat interval" in mikrom("doctor", "-v").stdout

    monkeypatch.setenv("MIKROM_DRIVER", "firecracker")
    monkeypatch.setenv("MIKROM_FIRECRACKER", "/nowhere/firecracker")
    broken = mikrom("doctor", code=1).stdout
    assert "broken  firecracker" in broken
    assert "→" in broken


def test_doctor_names_a_broker_that_is_away_without_its_password(
    mikrom: Mikrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIKROM_BROKER_URL", "redis://ana:hunter2@127.0.0.1:1/0")
    told = mikrom("doctor", code=1)
    assert "broken  broker" in told.stdout
    assert "hunter2" not in told.stdout + told.stderr


class Person:
    """Someone at a terminal: sees everything that a command writes to it, and types."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.environ["TERM"] = "xterm"
            os.execv(sys.executable, [sys.executable, "-m", "mikrom_reconcile", *words])
        self.seen = ""

    def waits_for(self, text: str) -> None:
        while text not in self.seen:
            self.seen += os.read(self._fd, 4096).decode()

    def types(self, text: str) -> None:
        os.write(self._fd, f"{text}\n".encode())

    def leaves(self) -> int:
        """The exit code, once everything has been read."""
        while True:
            try:
                self.seen += os.read(self._fd, 4096).decode()
            except OSError:  # the other side is closed
                break
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


@pytest.fixture
def person(folder: Path) -> Callable[..., Person]:
    return lambda *words: Person(words, folder)


def test_a_person_is_asked_and_may_say_no_or_yes(person: Callable[..., Person], mikrom: Mikrom) -> None:
    no = person("apply")
    no.waits_for("[y/N]")
    no.types("n")
    assert no.leaves() == 1
    assert names(mikrom) == []

    yes = person("apply")
    yes.waits_for("[y/N]")
    yes.types("y")
    assert yes.leaves() == 0
    assert "\x1b[32m+ create" in yes.seen
    assert len(names(mikrom)) == 3


@pytest.mark.parametrize(
    ("typed", "code", "told"),
    [("n\n", 1, "Nothing was done"), ("\x04", 1, "Nothing was done"), ("\x03", 130, "Interrupted by Ctrl-C")],
)
def test_who_asked_for_a_document_has_one_whatever_a_person_answers(
    typed: str, code: int, told: str, person: Callable[..., Person], mikrom: Mikrom
) -> None:
    someone = person("apply", "-o", "json")
    someone.waits_for("[y/N]")
    someone.types(typed)
    assert someone.leaves() == code
    document = json.loads(someone.seen[someone.seen.index("{\r\n") :])
    assert told in document["error"]
    assert document["exit_code"] == code
    assert names(mikrom) == []


def test_a_person_removes_more_than_the_share_by_typing_the_fleets_name(
    person: Callable[..., Person], mikrom: Mikrom, folder: Path
) -> None:
    mikrom("apply", "--yes")
    write_specs(folder, WEB % 1)
    someone = person("apply")
    someone.waits_for("type its name")
    someone.types("web")
    someone.waits_for("[y/N]")
    someone.types("y")
    assert someone.leaves() == 0
    assert names(mikrom) == ["web-000"]


def test_a_person_destroys_by_typing_the_fleets_name(person: Callable[..., Person], mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")
    wrong = person("destroy")
    wrong.waits_for("type its name")
    wrong.types("y")
    assert wrong.leaves() == 1
    assert len(names(mikrom)) == 3
    right = person("destroy")
    right.waits_for("type its name")
    right.types("web")
    assert right.leaves() == 0
    assert names(mikrom) == []

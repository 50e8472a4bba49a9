"""What is told when a command comes to nothing: to people, to programs, and where nobody can hear it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from mikrom_reconcile.system import locks
from tests.command import Mikrom, document, names

MIKROM = f"{sys.executable} -m mikrom_reconcile"
COMMANDS = [
    "--help", "plan --help", "version -o json", "validate", "plan", "apply --yes", "get vms -o json",
    "plan nosuch -o json",
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "why", "unbuffered"),
    [
        (">&-", "Bad file descriptor", ""),
        pytest.param(">&-", "Bad file descriptor", "1", marks=pytest.mark.soak),
        (">/dev/full", "No space left on device", ""),
        (">/dev/full", "No space left on device", "1"),
    ],
)
def test_a_stdout_that_takes_nothing_is_told_in_a_sentence(
    where: str, why: str, unbuffered: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    for command in COMMANDS:
        done = sh(f"{MIKROM} {command} {where}", folder)
        assert done.returncode == 1, command + done.stderr
        assert f"error: standard output: {why}" in done.stderr
        assert not {"Traceback", "mistake", "Exception"} & set(done.stderr.replace(":", " ").split())


def sh(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_what_was_done_is_kept_when_nobody_could_be_told(mikrom: Mikrom, folder: Path) -> None:
    assert sh(f"{MIKROM} apply --yes -o json >/dev/full", folder).returncode == 1
    (run,) = document("runs", mikrom("history", "-o", "json"))["runs"]
    assert (run["done"], run["exit_code"]) == (3, 0)


def test_nothing_fails_because_nobody_hears_stderr_or_answers(mikrom: Mikrom, folder: Path) -> None:
    assert sh(f"{MIKROM} apply --yes 2>/dev/full", folder).returncode == 0
    assert sh(f"{MIKROM} stop web-001 <&- 2>&-", folder).returncode == 0
    assert sh(f"{MIKROM} plan nosuch 2>&-", folder).returncode == 64
    assert sh(f"{MIKROM} --nonsense 2>/dev/full", folder).returncode == 64
    assert sh(f"{MIKROM} apply <&-", folder).returncode == 64
    assert sh(f"{MIKROM} apply --yes <&- >&- 2>&-", folder).returncode == 1
    assert names(mikrom) == ["web-000", "web-001", "web-002"]


def test_no_file_gets_the_number_of_a_stream_that_was_closed(folder: Path) -> None:
    script = (
        "from mikrom_reconcile.__main__ import main; import os; main(['version']); print(os.open('x', 65), os.O_CREAT)"
    )
    done = sh(f'{sys.executable} -c "{script}" <&- 2>&-', folder)
    assert int(done.stdout.splitlines()[1].split()[0]) > 2


# ---- documents -----------------------------------------------------------------------------------------------------

FAILING = [(["plan", "nosuch"], 64), (["plan", "--limit", "nosuch"], 64), (["apply", "--yes", "--nonsense"], 64),
           (["stop", "nosuch"], 64), (["describe", "nosuch"], 64), (["get", "vm"], 64)]  # fmt: skip


@pytest.mark.parametrize(("words", "code"), FAILING)
def test_programs_are_told_an_error_in_the_form_that_they_read(words: list[str], code: int, mikrom: Mikrom) -> None:
    ways = (["-o", "json"], ["-ojson"], ["--output", "json"], ["--output=json"])
    for asked in ways if words[0] == "get" else ways[:1]:  # the words are looked through in one way for all commands
        done = mikrom(*words, *asked, code=code)
        told = document("error", done)
        assert told["exit_code"] == code
        assert told["error"] in done.stderr
    assert yaml.safe_load(mikrom(*words, "-o", "yaml", code=code).stdout) == told
    assert mikrom(*words, code=code).stdout == ""


def test_an_error_before_the_check_is_told_in_every_form_of_a_check(mikrom: Mikrom) -> None:
    assert mikrom("validate", "nosuch", "-o", "github", code=64).stdout.startswith("::error::nosuch: No such file")
    log = json.loads(mikrom("validate", "nosuch", "-o", "sarif", code=64).stdout)
    (told,) = log["runs"][0]["invocations"]
    assert not told["executionSuccessful"]
    assert told["toolExecutionNotifications"][0]["message"]["text"].startswith("nosuch: No such file")
    report = ET.fromstring(mikrom("validate", "nosuch", "-o", "junit", code=64).stdout)
    assert (report.get("errors"), report.get("failures")) == ("1", "0")
    assert [error.get("message", "")[:7] for error in report.iter("error")] == ["nosuch:"]


def test_problems_of_the_specs_and_a_lease_that_is_held_are_documents_too(mikrom: Mikrom, folder: Path) -> None:
    held = locks.open_taken(folder / "state" / "locks" / "demo.lease")
    assert held is not None
    told = document("error", mikrom("apply", "--yes", "--timeout", "0.2", "-o", "json", code=16))
    assert "is being changed by" in told["error"]
    locks.give_back(held)
    (folder / "specs" / "bad.yml").write_text("kind: Flet\n")
    told = document("error", mikrom("plan", "-o", "json", code=1))
    assert [problem["path"] for problem in told["problems"]] == ["specs/bad.yml"]


def test_a_host_that_could_not_be_read_is_named_in_the_document(mikrom: Mikrom, folder: Path) -> None:
    mikrom("apply", "--yes")
    assert document("vms", mikrom("get", "vms", "-o", "json"))["unreachable"] == {}
    (folder / "state" / "vms").rename(folder / "vms")
    (folder / "state" / "vms").write_text("no folder")
    for words, name in ((["get", "vms"], "vms"), (["get", "fleets"], "fleets")):
        unreachable = document(name, mikrom(*words, "-o", "json", code=4))["unreachable"]
        assert list(unreachable) == ["localhost"]
    assert list(json.loads(mikrom("orphans", "-o", "json", code=4).stdout)["unreachable"]) == ["localhost"]


def test_a_commit_is_accepted_by_its_id_and_where_there_are_scheduled_runs(mikrom: Mikrom) -> None:
    assert "'main' is no commit" in mikrom("accept", "main", code=64).stderr
    assert "4f1c0a8: accepting it needs a control worker" in mikrom("accept", "4f1c0a8", code=64).stderr

"""Plans that are narrowed, parametrised, shown in other forms, saved and executed later: as processes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.command import WEB, Mikrom, document, names, write_specs

TWO = (
    (WEB % 2).replace("{name: web}", "{name: web, tags: [front]}")
    + """\
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: db, tags: [back]}
spec:
  replicas: 1
  vars: {mem: 16}
  template: {image: hello, machine: {mem_size_mib: "${mem}"}, boot_args: "x=${mem}"}
"""
)


def changed(mikrom: Mikrom, *words: str) -> set[str]:
    return {change["vm"] for change in document("plan", mikrom("plan", "-o", "json", *words))["changes"]}


@pytest.fixture(autouse=True)
def two_fleets(folder: Path) -> None:
    write_specs(folder, TWO)


def test_a_run_is_narrowed_by_names_and_tags(mikrom: Mikrom) -> None:
    assert changed(mikrom, "--limit", "web-001,db") == {"web-001", "db-000"}
    assert changed(mikrom, "--tags", "front", "--tags", "back") == {"web-000", "web-001", "db-000"}
    assert changed(mikrom, "--limit", "~web-0[0-9]{2,3}") == {"web-000", "web-001"}
    assert changed(mikrom, "--skip-tags", "front") == {"db-000"}
    mikrom("apply", "--yes", "--limit", "web:!web-001", code=0)
    assert names(mikrom) == ["web-000"]
    again = mikrom("apply", "--yes", "--limit", "web-000").stdout
    assert "Nothing to change: all that was selected is as specified." in again
    assert again.endswith("nothing was done; all that was selected is as specified.\n")
    mikrom("apply", "--yes")
    for _ in range(2):
        gone = mikrom("destroy", "--yes", "--limit", "db-000", code=0).stdout.splitlines()[0]
        assert names(mikrom) == ["web-000", "web-001"]
    assert gone == "Removes no VM"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--limit", "wbe-000"], "--limit: 'wbe-000' matches no VM, host, group or fleet; did you mean web-000?"),
        (["--limit", ""], "--limit: an empty word selects nothing, and one is in ''; write all for all"),
        (["--tags", "fornt"], "--tags: no fleet has the tag 'fornt'; did you mean front?"),
        (["--skip-tags", "front", "--skip-tags", "bakc"], "--skip-tags: no fleet has the tag 'bakc'"),
        (["--skip-tags", "front", "--skip-tags", "back"], "--tags and --skip-tags leave no fleet"),
        (["--tags", ""], "--tags: an empty word selects nothing; leave the option out, or say which tag"),
        (["--limit", "web", "--limit", "db"], "--limit is given twice; give it once with commas between the words"),
        ([""], "an empty PATH names no specs; leave it out, or write . for this folder"),
        (["nowhere"], "nowhere: No such file or directory"),
        (["specs", "empty"], "no *.yml or *.yaml file in empty"),
        (["-e", "mme=5"], "-e: nothing in these specs looks 'mme' up; did you mean mem?"),
        (["-e", "mem=32", "-e", "mem=48"], "-e: mem is given twice; give it once, after the files that have it too"),
        (["-e", "mem=32", "-e", "@extra.yml"], "-e: mem is given twice"),
        (["-e", "@specs"], "-e @specs: there is no such file of variables"),
        (["-e", "@specs/web.yml"], "-e: nothing in these specs looks 'apiVersion' up"),
    ],
)
def test_a_selection_that_matches_nothing_is_a_usage_error_and_removes_nothing(
    words: list[str], told: str, mikrom: Mikrom, folder: Path
) -> None:
    (folder / "extra.yml").write_text("mem: 64\n")
    (folder / "empty").mkdir()
    mikrom("apply", "--yes")
    assert told in mikrom("destroy", "--yes", *words, code=64).stderr
    assert len(names(mikrom)) == 3


def test_no_specs_at_all_are_meant_by_an_empty_mikrom_specs(mikrom: Mikrom, monkeypatch: pytest.MonkeyPatch) -> None:
    mikrom("apply", "--yes")
    monkeypatch.setenv("MIKROM_SPECS", "")
    for command in (["plan"], ["destroy", "--yes"], ["validate"], ["render"], ["up"]):
        told = mikrom(*command, code=64).stderr
        assert "MIKROM_SPECS is empty: unset it for ./specs, or say which specs" in told
    assert len(names(mikrom)) == 3


def test_who_destroys_is_told_first_which_vms_go(mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")
    assert mikrom("delete", "web-00*", "--yes").stdout.splitlines()[0] == "Removes 2 VMs: web-[000-001]"
    gone = mikrom("destroy", "--yes", "-o", "json")
    assert gone.stderr.splitlines()[0] == "Removes 1 VM: db-000"
    assert document("run", gone)["changes"][0]["kind"] == "delete"


def test_a_value_of_the_command_line_keeps_its_spelling_where_text_is_wanted(mikrom: Mikrom, folder: Path) -> None:
    (folder / "extra.yml").write_text("v: 1.30\n")
    write_specs(folder, (WEB % 1).replace("}}\n", "}, boot_args: 'v=${v}'}\n"))
    for words in (["-e", "v=1.30"], ["-e", "@extra.yml"], ["-e", "v='1.30'"]):
        assert yaml.safe_load(mikrom("render", *words).stdout)["vms"][0]["boot_args"] == "v=1.30"
    write_specs(folder, (WEB % 1).replace("}}\n", "}, boot_args: '${v}'}\n"))
    for words, text in ((["-e", "v=1.30"], "1.30"), (["-e", 'v="5"'], "5"), (["-e", "v='true'"], "true")):
        assert yaml.safe_load(mikrom("render", *words).stdout)["vms"][0]["boot_args"] == text


@pytest.mark.parametrize(
    ("words", "mem", "boot_args"),
    [
        (["-e", "mem=32"], 32, "x=32"),
        (["-e", "@extra.yml"], 64, "x=64"),
        (["-e", "@extra.yml", "-e", "mem=32"], 32, "x=32"),
    ],
)
def test_variables_of_the_command_line_win(
    words: list[str], mem: int, boot_args: str, mikrom: Mikrom, folder: Path
) -> None:
    (folder / "extra.yml").write_text("mem: 64\n")
    mikrom("apply", "--yes", *words)
    assert {vm["name"]: vm["mem_size_mib"] for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]} == {
        "db-000": mem, "web-000": 16, "web-001": 16,
    }  # fmt: skip
    fields = document("plan", mikrom("plan", "-o", "json"))["changes"][0]["fields"]
    assert {field["path"]: field["before"] for field in fields} == {
        "boot_args": boot_args, "machine.mem_size_mib": mem,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "code", "told"),
    [
        ("mem", 64, "write -e name=value, or -e @file.yml"),
        ("mem=\udcff", 64, "its value is no UTF-8"),
        ("a-b=1", 64, "cannot be a variable's name"),
        ("@nowhere.yml", 64, "nowhere.yml"),
        ("@list.yml", 64, "begins no mapping"),
        ("@broken.yml", 1, "not YAML"),
        ("mem=no", 1, "machine.mem_size_mib"),
    ],
)
def test_a_wrong_variable_is_told(variable: str, code: int, told: str, mikrom: Mikrom, folder: Path) -> None:
    (folder / "list.yml").write_text("- 1\n")
    (folder / "broken.yml").write_text("mem: [\n")
    assert told in mikrom("plan", "-e", variable, code=code).stderr


def test_every_form_of_a_plan_is_made(mikrom: Mikrom) -> None:
    assert mikrom("plan", "-o", "markdown").stdout.startswith("### Plan for demo at files:")
    assert mikrom("plan", "-o", "html").stdout.startswith("<!doctype html>")
    assert yaml.safe_load(mikrom("plan", "-o", "yaml").stdout)["summary"]["create"] == 3
    assert yaml.safe_load(mikrom("apply", "--yes", "-o", "yaml").stdout)["converged"] is True


def test_values_are_shown_in_full_when_that_is_asked_for(mikrom: Mikrom, folder: Path) -> None:
    mikrom("apply", "--yes")
    write_specs(folder, TWO.replace("x=${mem}", "y" * 90))
    assert "…" in mikrom("plan").stdout
    for command in ("plan", "apply"):
        words = ["--check"] if command == "apply" else []
        assert f'                 + "{"y" * 90}"\n' in mikrom(command, "--diff", *words).stdout


def test_what_if_this_host_were_lost(mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")
    lost = document("plan", mikrom("plan", "--without-host", "localhost", "-o", "json", code=8))
    assert lost["summary"]["blocked"] == 3
    assert lost["warnings"] == []
    assert "no host 'hv99'" in mikrom("plan", "--without-host", "hv99", code=64).stderr
    assert "cannot be saved" in mikrom("plan", "--without-host", "localhost", "--out", "p.json", code=64).stderr


def test_only_a_host_that_does_not_answer_can_be_assumed_dead(mikrom: Mikrom) -> None:
    for host in ("localhost", "hv99"):
        told = mikrom("apply", "--yes", "--assume-dead", host, code=64).stderr
        assert f"--assume-dead: {host} answers, or is no host of this project" in told
    assert names(mikrom) == []


# ---- saved plans -------------------------------------------------------------------------------------------------


def test_a_saved_plan_is_executed_as_it_is(mikrom: Mikrom, folder: Path) -> None:
    planned = mikrom("plan", "--out", "plan.json", "--limit", "web", "-o", "json").stdout
    assert (folder / "plan.json").stat().st_mode & 0o777 == 0o600
    write_specs(folder, "these are no specs any more")
    assert mikrom("apply", "plan.json", "--check", "-o", "json").stdout == planned
    done = document("run", mikrom("apply", "plan.json", "--yes", "-o", "json"))
    assert done["id"] == json.loads(planned)["id"]
    assert names(mikrom) == ["web-000", "web-001"]
    checked = document("plan", mikrom("apply", "plan.json", "--check", "-o", "json"))
    assert (checked["changes"], checked["summary"]["unchanged"]) == ([], 2)
    again = document("run", mikrom("apply", "plan.json", "--yes", "-o", "json"))
    assert (again["outcomes"], again["converged"]) == ([], True)


def test_a_saved_plan_is_refused_for_each_vm_whose_world_has_moved(mikrom: Mikrom, folder: Path) -> None:
    mikrom("plan", "--out", "plan.json")
    write_specs(folder, TWO.replace("mem_size_mib: 16", "mem_size_mib: 48"))
    mikrom("apply", "--yes", "--limit", "web-000")
    checked = document("plan", mikrom("apply", "plan.json", "--check", "-o", "json", code=8))
    assert [(told["vm"], told["rule"]) for told in checked["refusals"]] == [("web-000", "stale")]
    assert {told["vm"]: told["kind"] for told in checked["changes"]} == {
        "db-000": "create", "web-000": "blocked", "web-001": "create",
    }  # fmt: skip
    done = document("run", mikrom("apply", "plan.json", "--yes", "-o", "json", code=8))
    results = {told["vm"]: told["result"] for told in done["outcomes"]}
    assert results == {"web-000": "stale", "web-001": "done", "db-000": "done"}
    memory = {vm["name"]: vm["mem_size_mib"] for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]}
    assert memory == {"db-000": 16, "web-000": 48, "web-001": 16}


def edited(content: dict[str, Any], what: str) -> str:
    match what:
        case "another format":
            content["format_version"] = "2"
        case "an edited plan":
            content["plan"]["actions"] = []
        case "edited specs":
            content["request"]["tree"]["files"][0]["text"] += "\n"
        case "a wrong shape":
            content["plan"]["actions"] = "all"
        case _:
            del content["plan"]
    return json.dumps(content)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("another format", "another release saved this plan"),
        ("an edited plan", "this plan was changed after it was made"),
        ("edited specs", "this plan was changed after it was made"),
        ("a wrong shape", "this plan cannot be read"),
        ("no plan", "neither specs nor a plan"),
    ],
)
def test_a_plan_that_is_not_as_it_was_made_is_an_error(what: str, told: str, mikrom: Mikrom, folder: Path) -> None:
    mikrom("plan", "--out", "plan.json")
    (folder / "plan.json").write_text(edited(json.loads((folder / "plan.json").read_text()), what))
    error = mikrom("apply", "plan.json", "--yes", code=1).stderr
    assert error.startswith("error: plan.json: ")
    assert told in error
    assert "`mikrom plan --out FILE`" in error
    assert names(mikrom) == []


def test_half_a_plan_and_a_plan_for_programs_are_errors_too(mikrom: Mikrom, folder: Path) -> None:
    mikrom("plan", "--out", "plan.json")
    whole = (folder / "plan.json").read_bytes()
    (folder / "plan.json").write_bytes(whole[: len(whole) // 2])
    assert "this plan is not whole" in mikrom("apply", "plan.json", "--yes", code=1).stderr
    (folder / "plan.json").write_text(mikrom("plan", "-o", "json").stdout)
    assert "neither specs nor a plan that was saved with --out" in mikrom("apply", "plan.json", "--yes", code=1).stderr


def test_specs_in_braces_are_specs(mikrom: Mikrom, folder: Path) -> None:
    text = "{apiVersion: mikrom/v1, kind: Fleet, metadata: {name: a}, spec: {replicas: 1, template: {image: hello}}}"
    (folder / "flow.yml").write_text(text)
    (folder / "fleet.json").write_text(json.dumps(yaml.safe_load(text.replace("name: a", "name: b"))))
    mikrom("apply", "flow.yml", "--yes")
    mikrom("apply", "fleet.json", "--yes")
    assert names(mikrom) == ["a-000", "b-000"]


def test_nothing_else_goes_with_a_saved_plan(mikrom: Mikrom) -> None:
    mikrom("plan", "--out", "plan.json")
    for word in ("--limit=web", "-ea=1", "--prune-max=5", "--prune-max=0", "--limit=", "--assume-dead=hv01"):
        assert "executed as it is" in mikrom("apply", "plan.json", "--yes", word, code=64).stderr
    mikrom("apply", "plan.json", "--yes", "--forks", "2", "--timeout", "20")
    assert len(names(mikrom)) == 3


def test_a_place_where_no_plan_can_be_saved_is_an_error(mikrom: Mikrom) -> None:
    assert "nowhere/plan.json: No such file" in mikrom("plan", "--out", "nowhere/plan.json", code=1).stderr


def test_a_plan_is_saved_into_whatever_a_person_names_and_that_stays_what_it_is(mikrom: Mikrom, folder: Path) -> None:
    (folder / "mine.json").write_text("older")
    (folder / "mine.json").chmod(0o640)
    (folder / "link").symlink_to("mine.json")
    os.mkfifo(folder / "pipe")
    mikrom("plan", "--out", "link")
    assert (folder / "link").is_symlink()
    assert (folder / "mine.json").stat().st_mode & 0o777 == 0o640
    with subprocess.Popen(["cat", str(folder / "pipe")], stdout=subprocess.PIPE) as reader:
        mikrom("plan", "--out", "pipe")
        said, _ = reader.communicate(timeout=240)
    assert (folder / "pipe").is_fifo()
    assert json.loads(said)["plan"]["id"] == json.loads((folder / "mine.json").read_text())["plan"]["id"]
    assert not list(folder.glob(".mikrom-plan-*"))
    mikrom("apply", "mine.json", "--yes")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_stays_a_device(mikrom: Mikrom, folder: Path) -> None:
    os.mknod(folder / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))  # never the one of this machine
    mikrom("plan", "--out", "null")
    assert (folder / "null").is_char_device()


def test_a_plan_is_not_saved_over_the_specs_that_it_is_of(mikrom: Mikrom, folder: Path) -> None:
    specs = next((folder / "specs").iterdir())
    before = specs.read_text()
    (folder / "link").symlink_to(specs)
    for out in (f"specs/{specs.name}", str(specs), "link"):
        assert "these are the specs; name another file" in mikrom("plan", "--out", out, code=64).stderr
    assert specs.read_text() == before


def test_a_plan_is_for_the_machine_and_the_state_folder_that_it_was_made_with(
    mikrom: Mikrom, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mikrom("plan", "--out", "plan.json")
    monkeypatch.setenv("MIKROM_STATE_DIR", f"{folder}/other")
    for words in (["--yes"], ["--check"]):
        told = mikrom("apply", "plan.json", *words, code=1).stderr
        assert f"made for {folder}/state on " in told
        assert f"act on {folder}/other on " in told
    assert names(mikrom) == []
    (folder / "state").rename(folder / "moved")
    monkeypatch.setenv("MIKROM_STATE_DIR", f"{folder}/moved")
    mikrom("apply", "plan.json", "--yes")
    assert len(names(mikrom)) == 3


def test_check_of_a_saved_plan_and_its_apply_agree_about_what_it_did_not_know(mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")
    mikrom("plan", "--out", "plan.json")
    mikrom("stop", "web-001")
    checked = document("plan", mikrom("apply", "plan.json", "--check", "-o", "json", code=8))
    assert [(told["vm"], told["rule"]) for told in checked["refusals"]] == [("web-001", "stale")]
    assert document("run", mikrom("apply", "plan.json", "--yes", "-o", "json", code=8))["outcomes"] == []


def test_what_a_saved_plan_does_not_make_under_another_name_is_not_remembered_there(
    mikrom: Mikrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    mikrom("plan", "--out", "plan.json")
    with monkeypatch.context() as patched:
        patched.setenv("MIKROM_HOST", "another")
        done = document("run", mikrom("apply", "plan.json", "--yes", "-o", "json", code=8))
        assert {told["result"] for told in done["outcomes"]} == {"stale"}
    assert names(mikrom) == []
    mikrom("apply", "plan.json", "--yes")
    assert len(names(mikrom)) == 3


def test_a_dash_is_no_file(mikrom: Mikrom, folder: Path) -> None:
    for words in (["plan", "-"], ["plan", "--out", "-"], ["validate", "-"], ["init", "-"], ["apply", "--yes", "-"]):
        assert "standard input" in mikrom(*words, code=64).stderr
    assert sorted(path.name for path in folder.iterdir()) == ["specs"]

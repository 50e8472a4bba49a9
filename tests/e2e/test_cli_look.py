"""The commands that look, explain and set up, as processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.command import PROJECT, WEB, Mikrom, document, names, write_specs

BIGGER = (WEB % 3).replace(": 16", ': "${mem}"').replace("replicas", "vars: {mem: 32}\n  replicas")


@pytest.fixture
def applied(mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")


def test_every_list_has_its_document_and_a_text(mikrom: Mikrom, applied: None) -> None:
    (host,) = document("hosts", mikrom("get", "hosts", "-o", "json"))["hosts"]
    assert (host["host"], host["vms"], host["running"]) == ("localhost", 3, 3)
    (fleet,) = document("fleets", mikrom("get", "fleets", "-o", "json"))["fleets"]
    assert (fleet["fleet"], fleet["wanted"], fleet["running"]) == ("web", 3, 3)
    (run,) = document("runs", mikrom("get", "runs", "-o", "json"))["runs"]
    assert (run["done"], run["exit_code"], run["summary"]["create"]) == (3, 0, 3)
    assert re.fullmatch(r"apply by \S+@\S+", run["origin"])
    for kind, head in (("hosts", "HOST"), ("fleets", "PROJECT"), ("runs", "WHEN"), ("vms", "NAME")):
        assert mikrom("get", kind).stdout.startswith(head)
        assert yaml.safe_load(mikrom("get", kind, "-o", "yaml").stdout)["format_version"] == "1"


def test_the_status_is_a_page_too(mikrom: Mikrom, applied: None, folder: Path) -> None:
    write_specs(folder, BIGGER)
    page = mikrom("status", "-o", "html").stdout
    assert "1 host, 3 VMs, 3 running, 0 amiss. Plan: 1 to restart, 2 waiting; 0 unchanged." in page
    assert "Converged in" in page
    write_specs(folder, "kind: [")
    assert "problem(s) in the specs, the first in specs/web.yml:1:" in mikrom("status", "-o", "html").stdout
    (folder / "specs" / "web.yml").unlink()
    (folder / "specs").rmdir()
    assert "3 VMs, 3 running, 0 amiss." in mikrom("status", "-o", "html").stdout


def test_runs_and_deeds_are_told_by_name_and_in_order(mikrom: Mikrom, applied: None, folder: Path) -> None:
    write_specs(folder, WEB % 4)
    mikrom("apply", "--yes")
    both = document("runs", mikrom("history", "-o", "json"))["runs"]
    assert [run["done"] for run in both] == [1, 3]
    assert document("runs", mikrom("history", "web-003", "-o", "json"))["runs"] == both[:1]
    assert document("runs", mikrom("history", "web", "-n", "1", "-o", "json"))["runs"] == both[:1]
    assert "Converged in" in mikrom("history").stdout

    deeds = document("events", mikrom("events", "-o", "json"))["events"]
    assert (len(deeds), deeds[-1]["vm"], deeds[-1]["run_id"]) == (4, "web-003", both[0]["run_id"])
    assert document("events", mikrom("events", "-n", "2", "-o", "json"))["events"] == deeds[-2:]
    (line,) = mikrom("events", "--limit-to", "web-003").stdout.splitlines()
    by = rf"\[apply by \S+, run {both[0]['run_id']} at files:\w+\]"
    told = rf"\S+ \S+  created web-003 on localhost in \d+ ms: does not exist {by}"
    assert re.fullmatch(told, line)
    for words in (["events", "--limit-to"], ["history"], ["get", "runs"]):
        assert "nothing is called 'wed'; did you mean web?" in mikrom(*words, "wed", code=64).stderr


def test_one_thing_is_described_with_all_that_is_known(mikrom: Mikrom, applied: None) -> None:
    (vm,) = document("described", mikrom("describe", "web-001", "-o", "json"))["found"]
    assert (vm["kind"], vm["phase"], vm["spec"]["machine"]["mem_size_mib"]) == ("VM", "running", 16)
    assert [event["verb"] for event in vm["events"]] == ["create"]
    (fleet,) = document("described", mikrom("describe", "web", "-o", "json"))["found"]
    assert (fleet["wanted"], fleet["names_by_phase"]) == (3, {"running": "web-[000-002]"})
    (host,) = yaml.safe_load(mikrom("describe", "localhost").stdout)["found"]
    assert (host["kind"], host["vms_by_host"]) == ("Host", {"localhost": 3})
    assert [event["verb"] for event in host["events"]] == ["create"] * 3
    assert "did you mean web-00" in mikrom("describe", "web-009", code=64).stderr
    assert "did you mean web-00" in mikrom("logs", "web-009", code=64).stderr


def test_specs_are_rendered_with_where_each_value_comes_from(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, BIGGER)
    vms = document("rendered", mikrom("render", "-o", "json"))["vms"]
    assert [vm["machine"]["mem_size_mib"] for vm in vms] == [32, 32, 32]
    assert yaml.safe_load(mikrom("render").stdout)["vms"] == vms
    only = ("--explain", "--limit", "web-001", "-e", "mem=48", "-o", "json")
    (vm,) = document("rendered", mikrom("render", *only))["vms"]
    origins = {origin["path"]: origin for origin in vm["origins"]}
    assert origins["machine.mem_size_mib"] == {
        "path": "machine.mem_size_mib", "value": 48, "written": "${mem}", "place": "specs/web.yml:11:52 template",
        "variables": [{"name": "mem", "value": 48, "origin": "-e"}],
    }  # fmt: skip
    assert origins["prune.max"]["place"] == "default"
    text = mikrom("render", "--explain", "-o", "text").stdout
    assert 'specs/web.yml:11:52 template, written "${mem}", mem = 32 from fleet web\n' in text
    assert "specs/web.yml" not in mikrom("render", "-o", "text").stdout
    assert "matches no VM" in mikrom("render", "--limit", "wbe", code=64).stderr
    assert names(mikrom) == []


def test_a_vm_is_explained_whatever_is_known_of_it(mikrom: Mikrom, applied: None, folder: Path) -> None:
    quiet = document("explanation", mikrom("explain", "web-001", "-o", "json"))
    assert (quiet["rule"]["id"], quiet["rule"]["name"], quiet["change"]) == ("up-to-date", "as_wanted", None)
    write_specs(folder, BIGGER)
    told = document("explanation", mikrom("explain", "web-000", "-o", "json"))
    assert told["change"]["kind"] == "restart"
    assert told["conclusion"] == "restart on localhost: spec changed"
    assert told["wanted"]["place"] == "specs/web.yml:7:18"
    text = mikrom("explain", "web-000").stdout
    assert re.search(r"machine\.mem_size_mib +32 +16 +16 +specs/web\.yml:11:52 template, written", text)
    write_specs(folder, BIGGER.replace("demo", "shop").replace("web", "app"))
    other = document("explanation", mikrom("explain", "web-000", "-o", "json"))
    assert other["conclusion"] == "nothing happens: it belongs to project demo, and these specs speak for shop"
    assert "nothing is called 'web-009'" in mikrom("explain", "web-009", code=64).stderr


# ---- set-up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["2026-11-29", "123", "yes", "null", "1e3", "007"])
def test_a_starter_project_validates_whatever_its_folder_is_called(name: str, mikrom: Mikrom) -> None:
    mikrom("init", name)
    mikrom("validate", f"{name}/specs")


def test_a_starter_project_validates_applies_and_is_not_overwritten(mikrom: Mikrom, folder: Path) -> None:
    wrote = mikrom("init", "My Shop!").stdout
    base = folder / "My Shop!"
    files = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    assert files == {"specs/project.yml", "specs/web.yml", ".pre-commit-config.yaml"}
    assert all(f"wrote My Shop!/{path}\n" in wrote for path in files)
    assert "Next: cd 'My Shop!' && mikrom validate && mikrom plan\n" in wrote
    loaded = {path: yaml.safe_load((base / path).read_text()) for path in files}
    assert loaded["specs/project.yml"]["metadata"]["name"] == "my-shop"
    assert loaded[".pre-commit-config.yaml"]["repos"][0]["hooks"][0]["entry"] == "mikrom validate"
    mikrom("validate", "My Shop!/specs")
    mikrom("apply", "--yes", "My Shop!/specs")
    assert len(names(mikrom)) == 3

    (base / "specs" / "web.yml").unlink()
    (base / "specs" / "project.yml").write_text("mine")
    assert "My Shop! has specs/project.yml, " in mikrom("init", "My Shop!", code=1).stderr
    assert not (base / "specs" / "web.yml").exists()
    assert (base / "specs" / "project.yml").read_text() == "mine"


def test_schemas_are_printed_and_hold_the_specs_to_them(mikrom: Mikrom, folder: Path) -> None:
    umbrella = yaml.safe_load(mikrom("schema").stdout)
    Draft202012Validator.check_schema(umbrella)
    for path in (PROJECT / "specs").glob("*.yml"):
        for spec in yaml.safe_load_all(path.read_text()):
            Draft202012Validator(umbrella).validate(spec)
    fleet = next(yaml.safe_load_all((PROJECT / "specs" / "web.yml").read_text()))
    fleet["spec"]["replica"] = 3
    assert not Draft202012Validator(umbrella).is_valid(fleet)
    assert not Draft202012Validator(yaml.safe_load(mikrom("schema", "fleet").stdout)).is_valid(fleet)
    assert not Draft202012Validator(umbrella).is_valid({"kind": "Flet"})
    mikrom("schema", "nonsense", code=64)


def test_the_umbrella_schema_of_the_repository_refuses_an_unknown_key(folder: Path) -> None:
    def check(name: str) -> int:
        tool = Path(sys.executable).with_name("check-jsonschema")
        schema = PROJECT / "schemas" / "mikrom.schema.json"
        return subprocess.run(
            [tool, "--schemafile", schema, folder / name], check=False, capture_output=True
        ).returncode

    text = (WEB % 3).partition("---\n")[2]
    (folder / "good.yml").write_text(text)
    (folder / "bad.yml").write_text(text.replace("replicas", "replica"))
    assert (check("good.yml"), check("bad.yml")) == (0, 1)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("mikrom expl", {"explain"}),
        ("mikrom get ru", {"runs"}),
        ("mikrom plan --assume", {"--assume-dead"}),
        ("mikrom explain web-00", {"web-000", "web-001", "web-002"}),
        ("mikrom describe we", {"web", "web-000", "web-001", "web-002"}),
    ],
)
def test_a_shell_completes_commands_options_and_names(
    words: str, offered: set[str], mikrom: Mikrom, applied: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "_MIKROM_COMPLETE=bash_complete" in mikrom("completion", "bash").stdout
    monkeypatch.setenv("_MIKROM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert {line.partition(",")[2] for line in mikrom().stdout.splitlines()} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, mikrom: Mikrom) -> None:
    assert f"_MIKROM_COMPLETE={shell}_complete" in mikrom("completion", shell).stdout
    mikrom("completion", "tcsh", code=64)


def test_names_are_not_waited_for(mikrom: Mikrom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIKROM_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("_MIKROM_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "mikrom explain we")
    monkeypatch.setenv("COMP_CWORD", "2")
    done = mikrom()
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_no_name_that_is_given_can_drive_the_terminal(mikrom: Mikrom) -> None:
    assert "\x1b" not in mikrom("explain", "a\x1b[2J", code=64).stderr
    assert "\x1b" not in mikrom("init", "a\x1b[2J").stdout

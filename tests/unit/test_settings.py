"""What settings may be, and what is said of those that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from mikrom_reconcile.cli.setup import doctor
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.settings import Settings, docs, load, misspelt, refuse_misspelt
from tests.command import PROJECT

NO_PATHS = {
    "MIKROM_DRIVER", "MIKROM_HOST", "MIKROM_JAIL", "MIKROM_IMAGE_MAX_MIB", "MIKROM_SECRET_ENV", "MIKROM_BROKER_URL",
    "MIKROM_WORKER_ROLE", "CELERY_QUEUE_NAME", "FLOWER_BASIC_AUTH", "FLOWER_PORT", "MIKROM_FORKS", "MIKROM_TIMEOUT",
    "MIKROM_REGISTRY_MIRRORS", "MIKROM_RECONCILE_INTERVAL", "MIKROM_RECONCILE_MODE", "MIKROM_METRICS", "MIKROM_DEBUG",
    "MIKROM_WEBHOOKS", "MIKROM_WEBHOOK_SECRET", "MIKROM_WEBHOOK_TOKEN",
    "MIKROM_PAGE_AUTH", "MIKROM_APPROVALS",
}  # fmt: skip
PATHS = sorted({entry.metadata["variable"] for entry in fields(Settings)} - NO_PATHS)


def test_every_setting_has_its_meaning() -> None:
    assert [*docs()] == [entry.metadata["variable"] for entry in fields(Settings)]
    assert min(map(len, docs().values())) > 10


def test_mirrors_stand_beside_the_registries_that_they_are_asked_for() -> None:
    found = load({"MIKROM_REGISTRY_MIRRORS": "docker.io=mirror:5000/hub, ghcr.io=mirror"}).registry_mirrors
    assert found == (("docker.io", "mirror:5000/hub"), ("ghcr.io", "mirror"))
    for odd in ("mirror", "=mirror", "docker.io=", "docker.io=https://mirror", "docker.io=mirror/"):
        with pytest.raises(UsageError, match=r"must be like docker\.io=mirror\.example\.net:5000"):
            load({"MIKROM_REGISTRY_MIRRORS": odd})


@pytest.mark.parametrize("text", ["state", "./state", "~/state", "-"])
@pytest.mark.parametrize("variable", [*PATHS, "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "HOME"])
def test_every_path_means_the_same_in_every_working_directory(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, text)
    with pytest.raises(UsageError, match=rf"{variable}='{text}.*must be an absolute path"):
        load({variable: text})


def test_a_path_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(UsageError, match="MIKROM_STATE_DIR="):
        load({"MIKROM_STATE_DIR": "/tmp/\udcff"})


def test_one_relative_folder_among_many_is_refused_too() -> None:
    with pytest.raises(UsageError, match="MIKROM_IMAGE_DIRS='/a:b'"):
        load({"MIKROM_IMAGE_DIRS": "/a:b"})


@pytest.mark.parametrize("text", ["true", "yes", "2"])
def test_a_switch_is_on_or_off_and_nothing_else(text: str) -> None:
    with pytest.raises(UsageError, match=r"MIKROM_DEBUG='.*must be 0 or 1"):
        load({"MIKROM_DEBUG": text})


@pytest.mark.needs("unshare")
@pytest.mark.parametrize("folders", [{}, {"MIKROM_STATE_DIR": "/nowhere/s", "MIKROM_RUN_DIR": "/nowhere/r"}])
def test_a_user_without_a_home_can_validate(folders: dict[str, str], own_environment: Path) -> None:
    (own_environment / "web.yml").write_text(
        "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 1, template: {image: hello}}\n"
    )
    nobody = ["unshare", "--map-user=54321", "--map-group=54321"]  # a number that no /etc/passwd has
    argv = [*nobody, sys.executable, "-m", "mikrom_reconcile", "validate", "web.yml"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **folders}
    done = subprocess.run(argv, cwd=own_environment, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 VM in 1 fleet" in done.stdout


def test_a_misspelt_variable_is_told_with_the_nearest_one() -> None:
    environ = {"MIKROM_STATE_DIRS": "/x", "MIKROM_COLOUR": "1", "MIKROM_EMPTY": "", "MIKROM_HOST": "a"}
    environ |= {"MIKROM_SECRET_ENV": "TOKEN, MIKROM_TOKEN", "MIKROM_TOKEN": "s3cret"}
    assert list(misspelt(environ)) == [
        "nothing reads MIKROM_COLOUR; `mikrom doctor` lists every setting",
        "nothing reads MIKROM_STATE_DIRS; did you mean MIKROM_STATE_DIR?",
    ]


def test_a_service_does_not_start_with_a_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_misspelt()
    monkeypatch.setenv("MIKROM_SPEC", "/srv")
    with pytest.raises(UsageError, match="nothing reads MIKROM_SPEC; did you mean MIKROM_SPECS"):
        refuse_misspelt()


def test_doctor_prints_values_as_a_person_writes_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "MIKROM_SECRET_DIRS": "/a:/b", "MIKROM_SECRET_ENV": "ONE,TWO", "MIKROM_TIMEOUT": "90.5", "MIKROM_DEBUG": "1",
        "MIKROM_BROKER_URL": "redis://:s3cr3t@127.0.0.1:1/0", "FLOWER_BASIC_AUTH": "a:b", "MIKROM_DRIVR": "qemu",
        "MIKROM_SPECS": "git+https://me:s3cr3t@example.net/fleet.git@main#specs",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    doctor.main([], standalone_mode=False)
    told = capsys.readouterr().out
    values = {line.split()[0]: line.split()[1] for line in told.splitlines() if line.startswith(("MIKROM_", "FLOWER_"))}
    assert values["MIKROM_SECRET_DIRS"] == "/a:/b"
    assert values["MIKROM_SECRET_ENV"] == "ONE,TWO"
    assert values["MIKROM_IMAGE_DIRS"] == "-"
    assert (values["MIKROM_TIMEOUT"], values["MIKROM_RECONCILE_INTERVAL"]) == ("90.5", "60")
    assert (values["MIKROM_DEBUG"], values["FLOWER_BASIC_AUTH"]) == ("1", "***")
    assert "nothing reads MIKROM_DRIVR" in told
    assert "did you mean MIKROM_DRIVER?" in told
    assert "s3cr3t" not in told

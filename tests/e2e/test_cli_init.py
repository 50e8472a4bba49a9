"""What `mikrom init` writes works as it stands: every step of its pipelines is run here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from tests.command import Mikrom, names

PIPELINES = {
    "github-workflows": ".github/workflows/mikrom.yml",
    "gitlab-ci": ".gitlab-ci.yml",
}


@pytest.fixture
def shop(mikrom: Mikrom, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project as it is begun, on a runner with mikrom on its PATH."""
    (folder / "bin").mkdir()
    (folder / "bin" / "mikrom").write_text(f'#!/bin/sh\nexec {sys.executable} -m mikrom_reconcile "$@"\n')
    (folder / "bin" / "mikrom").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", f"{folder}/summary.md")
    monkeypatch.setenv("MIKROM_BROKER_URL", "")  # as a secret that is not set
    mikrom("init", "shop")
    return folder / "shop"


def steps(shop: Path, pipeline: str, job: str) -> list[str]:
    described: dict[str, Any] = yaml.load((shop / PIPELINES[pipeline]).read_text(), yaml.BaseLoader)
    if pipeline == "gitlab-ci":
        return list(described[job]["script"])
    return [step["run"] for step in described["jobs"][job]["steps"] if "run" in step]


def run(shop: Path, pipeline: str, job: str) -> list[int]:
    """The exit codes of a job's steps, as its runner starts them."""
    return [
        subprocess.run(
            ["bash", "-e", "-c", step], cwd=shop, stdin=subprocess.DEVNULL, timeout=240, check=False
        ).returncode
        for step in steps(shop, pipeline, job)
    ]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_job_of_a_pipeline_does_what_it_is_there_for(pipeline: str, shop: Path, mikrom: Mikrom) -> None:
    assert set(run(shop, pipeline, "plan")) == {0}
    assert "3 to create" in (shop / "plan.md").read_text()
    assert set(run(shop, pipeline, "apply")) == {0}
    assert names(mikrom) == ["web-000", "web-001", "web-002"]
    assert run(shop, pipeline, "drift") == [0]
    mikrom("stop", "web-001")
    assert run(shop, pipeline, "drift") == [2]
    (shop / "specs" / "web.yml").write_text("kind: Flet\n")
    assert 1 in run(shop, pipeline, "plan")


def test_the_summary_of_a_pull_request_is_its_plan(shop: Path, folder: Path) -> None:
    run(shop, "github-workflows", "plan")
    assert (folder / "summary.md").read_text() == (shop / "plan.md").read_text()


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_pipeline_is_of_the_form_that_its_service_reads(pipeline: str, shop: Path) -> None:
    described = yaml.safe_load((shop / PIPELINES[pipeline]).read_text())
    described = {{True: "on"}.get(key, key): value for key, value in described.items()}  # YAML 1.1 in PyYAML
    schema = files("check_jsonschema").joinpath("builtin_schemas", "vendor", f"{pipeline}.json").read_text()
    Draft7Validator(json.loads(schema)).validate(described)


def test_nothing_is_fetched_by_a_name_that_anybody_could_take(shop: Path) -> None:
    written = "".join((shop / path).read_text() for path in PIPELINES.values())
    assert not re.search(r"\b(pip|pipx|uv|uvx|npm|docker|curl|wget)\b|\bimage:", written)
    assert set(re.findall(r"uses: (.*)", written)) == {"actions/checkout@v4", "actions/upload-artifact@v4"}


def test_nothing_that_is_there_is_overwritten_not_even_a_link_to_nowhere(mikrom: Mikrom, folder: Path) -> None:
    (folder / "new" / "specs").mkdir(parents=True)
    (folder / "new" / "specs" / "web.yml").symlink_to("nowhere.yml")
    assert "specs/web.yml already; nothing was written" in mikrom("init", "new", code=1).stderr
    assert [path.name for path in (folder / "new").rglob("*")] == ["specs", "web.yml"]

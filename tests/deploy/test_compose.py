"""The commands and health checks of `docker-compose.yml`, run one by one without Docker. Its form is held to the
compose specification by `make check`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from mikrom_reconcile.system.processes import programs
from tests.deploy.installed import BIN, free_port
from tests.fleet import ROOT, wait_until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make process 1 of its own, as a container has it"),
]

SPECS = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 1, template: {image: hello}}\n"
PASSWORD = "never-in-an-argument"
SERVICES = ("control", "host", "beat", "flower")


def interpolated(value: Any, variables: dict[str, str]) -> Any:
    """`value` with what compose puts in for ${NAME}, ${NAME:-default}, ${NAME:?message} and $$."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    innermost = re.compile(r"\$\{(\w+)(?::([-?])([^${}]*))?\}")
    while match := innermost.search(value):
        found = variables.get(match[1]) or (match[3] if match[2] == "-" else "")
        assert found or match[2] != "?", match[3]
        value = value[: match.start()] + found + value[match.end() :]
    return value.replace("$$", "$")


class Compose:
    """The services as processes, each of them number 1 of its own, as in a container."""

    def __init__(self, folder: Path) -> None:
        (folder / "web.yml").write_text(SPECS)
        text = (ROOT / "docker-compose.yml").read_text()
        self.env_file = {
            "REDIS_PASSWORD": PASSWORD,
            "FLOWER_BASIC_AUTH": f"ana:{PASSWORD}",
            "FLOWER_PORT": str(free_port()),
            "MIKROM_DRIVER": "simulated",
        }
        moved = text.replace("6379", str(free_port())).replace(":-/specs}", f":-{folder}/web.yml}}")
        self.services = interpolated(yaml.safe_load(moved)["services"], self.env_file)
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def environment(self, service: str) -> dict[str, str]:
        own = {**self.env_file, **self.services[service]["environment"]}
        own |= {
            name: f"{self.folder}/{service}{path}"
            for name, path in own.items()
            if name in {"MIKROM_STATE_DIR", "MIKROM_RUN_DIR"}
        }
        return {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": os.environ.get("PYTHONPATH", "")} | own

    def start(self, service: str) -> None:
        entrypoint = self.services[service].get("entrypoint", ["mikrom"])
        argv = ["unshare", "--pid", "--fork", "--kill-child", *entrypoint, *self.services[service]["command"]]
        with (self.folder / f"{service}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(argv, env=self.environment(service), stdout=log, stderr=log, cwd=self.folder)
            )

    def is_healthy(self, service: str) -> bool:
        kind, *check = self.services[service]["healthcheck"]["test"]
        argv = ["sh", "-c", *check] if kind == "CMD-SHELL" else check
        return subprocess.run(argv, env=self.environment(service), capture_output=True, check=False).returncode == 0

    def health(self) -> dict[str, bool]:
        with ThreadPoolExecutor() as pool:
            return dict(zip(SERVICES, pool.map(self.is_healthy, SERVICES), strict=True))

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def compose(own_environment: Path) -> Iterator[Compose]:
    compose = Compose(own_environment)
    try:
        yield compose
    finally:
        compose.close()


def test_each_service_runs_by_its_command_and_its_health_check_knows_whether_it_does(compose: Compose) -> None:
    assert not compose.is_healthy("redis")
    compose.start("redis")
    wait_until(lambda: compose.is_healthy("redis"), "redis")
    assert compose.health() == dict.fromkeys(SERVICES, False)
    for service in SERVICES:
        compose.start(service)
    wait_until(lambda: all(compose.health().values()), "all services")
    assert not [pid for pid, _, argv in programs() if PASSWORD in " ".join(argv)]


def test_without_a_password_nothing_starts() -> None:
    with pytest.raises(AssertionError, match=r"set it in \.env"):
        interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), {})


def test_every_service_comes_back_and_none_has_more_rights_than_it_needs(compose: Compose) -> None:
    for service in compose.services.values():
        assert service["restart"] == "unless-stopped"
        assert service["cap_drop"] == ["ALL"]
        assert service["healthcheck"]["test"]
        assert not service.get("privileged")
    assert {name for name, service in compose.services.items() if "devices" in service} == {"host"}


def test_what_the_dockerfile_copies_is_there_and_is_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in shlex.split(line)}
    assert names == let_in
    assert all((ROOT / name).exists() for name in names)

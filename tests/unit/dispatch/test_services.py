"""What a service refuses to start without, and how a running `mikrom up` is found."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.errors import SetupError, UsageError
from mikrom_reconcile.dispatch.transport import broker
from mikrom_reconcile.dispatch.transport.broker import RunningUp, broker_url, find_up, up_file, without_password
from mikrom_reconcile.services import commands
from mikrom_reconcile.services.commands import Child, private_settings
from mikrom_reconcile.settings import Settings, load
from mikrom_reconcile.system import locks
from mikrom_reconcile.times_and_sizes import SERVICES


def settings(folder: Path, **variables: str) -> Settings:
    return load({"MIKROM_STATE_DIR": f"{folder}/state", "MIKROM_RUN_DIR": f"{folder}/run", **variables})


@pytest.mark.parametrize(
    ("service", "variables", "missing"),
    [
        ("host", {}, "MIKROM_BROKER_URL is not set"),
        ("host", {"MIKROM_BROKER_URL": "amqp://guest@there"}, "must begin with redis://"),
        ("beat", {"MIKROM_BROKER_URL": "redis+socket:///no/such", "MIKROM_SPECS": "/x"}, "no answer from the broker"),
        ("control", {"MIKROM_BROKER_URL": "redis://x"}, "MIKROM_SPECS is not set"),
        ("beat", {"MIKROM_BROKER_URL": "redis://x"}, "MIKROM_SPECS is not set"),
        ("flower", {"MIKROM_BROKER_URL": "redis://x"}, "FLOWER_BASIC_AUTH is not set"),
    ],
)
def test_a_service_says_what_it_does_not_start_without(
    own_environment: Path, service: commands.Service, variables: dict[str, str], missing: str
) -> None:
    with pytest.raises((UsageError, SetupError), match=missing):
        commands.check(service, settings(own_environment, **variables))


@pytest.mark.parametrize("service", ["host", "control"])
def test_a_worker_waits_for_a_broker_that_does_not_answer_and_says_so(
    own_environment: Path, service: commands.Service, capsys: pytest.CaptureFixture[str]
) -> None:
    found = settings(own_environment, MIKROM_BROKER_URL="redis+socket:///no/such.sock", MIKROM_SPECS="/x")
    assert commands.check(service, found) == found
    assert "mikrom worker: no answer from the broker" in capsys.readouterr().err


def test_flower_names_a_port_that_is_taken(own_environment: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = settings(
            own_environment, MIKROM_BROKER_URL="redis://x", FLOWER_BASIC_AUTH="ana:x", FLOWER_PORT=str(port)
        )
        with pytest.raises(SetupError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            commands.check("flower", found)


def test_no_argument_of_a_service_tells_a_secret(own_environment: Path) -> None:
    found = settings(own_environment, MIKROM_BROKER_URL="redis://:sesame@there/0", FLOWER_BASIC_AUTH="ana:sesame")
    for service in ("host", "control", "beat", "flower"):
        assert "sesame" not in " ".join(commands.command(service, found))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:sesame@there:6379/0", "redis://:***@there:6379/0"),
        ("rediss://ana:sesame@there/1?ssl_keyfile=sesame", "rediss://ana:***@there/1"),
        ("redis+socket://:sesame@/run/mikrom/redis.sock", "redis+socket://:***@/run/mikrom/redis.sock"),
        ("redis://there", "redis://there"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_refused_url_is_shown_without_its_password(own_environment: Path) -> None:
    with pytest.raises(UsageError) as told:
        broker_url(settings(own_environment, MIKROM_BROKER_URL="amqp://ana:sesame@there"))
    assert "sesame" not in str(told.value)


def test_up_is_found_only_while_it_lives(own_environment: Path) -> None:
    found = settings(own_environment)
    assert find_up(found) is None
    path = up_file(found)
    fd = locks.open_taken(path)
    assert fd is not None
    os.write(fd, msgspec.json.encode(RunningUp(pid=7, broker_url="redis+socket:///there")))
    assert find_up(found) == "redis+socket:///there"
    locks.give_back(fd)
    assert path.exists()
    assert find_up(found) is None


def test_up_that_is_still_starting_is_never_taken_for_none(
    own_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "SERVICES", replace(SERVICES, starting_s=0.2))
    found = settings(own_environment)
    fd = locks.open_taken(up_file(found))
    assert fd is not None
    for written in (b"", msgspec.json.encode(RunningUp(pid=7))):
        os.pwrite(fd, written, 0)
        with pytest.raises(SetupError, match="is not ready yet"):
            find_up(found)
    locks.give_back(fd)


def test_a_service_that_goes_on_ending_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SERVICES", replace(SERVICES, restart_s=0.01, starts=3))
    child = Child("flower", ["sh", "-c", "echo no port"], os.environ, log=tmp_path / "flower.log")
    told: list[str] = []
    while len(told) < 3:
        if (news := child.keep()) is not None:
            told.append(news.partition("; ")[0])
    again, never = "starts again in 0.01 s", "is not started again"
    assert told == [f"flower: ended (exit code 0), {what}" for what in (again, again, never)]
    assert (child.keep(), child.process) == (None, None)


@pytest.mark.parametrize("specs", ["git+https://example.net/repo@main#specs", "/srv/specs"])
def test_up_takes_specs_from_git_as_they_are(own_environment: Path, specs: str) -> None:
    assert private_settings(settings(own_environment, MIKROM_SPECS=specs)).specs == specs


def test_a_service_does_not_start_with_a_source_that_git_would_misunderstand(own_environment: Path) -> None:
    found = settings(own_environment, MIKROM_BROKER_URL="redis://x", MIKROM_SPECS="git+ext::sh -c x")
    with pytest.raises(UsageError, match="its protocol must be one of"):
        commands.check("control", found)

"""What `doctor --security` finds in a set-up that a test has made insecure."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mikrom_reconcile.dispatch.transport.signing import make_pair
from mikrom_reconcile.doctor.machine import run_checks
from mikrom_reconcile.doctor.security import CHECKS
from mikrom_reconcile.output.doctor import Check
from mikrom_reconcile.settings import Settings, load
from tests.fleet import Fleet


@pytest.fixture
def settings(own_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(own_environment)
    return load()


def found(settings: Settings, name: str) -> list[Check]:
    return [check for check in run_checks(CHECKS, settings) if check.name == name]


def states(settings: Settings, name: str) -> list[str]:
    return [check.state for check in found(settings, name)]


def test_an_embedded_machine_with_closed_folders_has_nothing_to_mend(settings: Settings) -> None:
    settings.state_dir.mkdir(mode=0o700)
    checks = [*run_checks(CHECKS, settings)]
    assert [check.name for check in checks if check.state == "broken"] == []
    assert [check.name for check in checks if check.state == "note"] == (["user"] if os.geteuid() == 0 else [])


def test_a_folder_that_others_may_enter_is_told_with_its_mode_and_how_to_close_it(
    settings: Settings,
) -> None:
    settings.state_dir.mkdir(mode=0o755)
    (check,) = found(settings, "state folder")
    assert (check.state, check.found) == ("broken", f"{settings.state_dir} is open to others (0755)")
    assert check.remedy == f"chmod 700 {settings.state_dir}"


def test_a_dotenv_that_everybody_reads_is_broken(settings: Settings) -> None:
    Path(".env").write_text("FLOWER_BASIC_AUTH=ana:sesame\n")
    Path(".env").chmod(0o644)
    (check,) = found(settings, "secrets")
    assert check.state == "broken"
    assert "0644" in check.found
    assert "sesame" not in check.found + check.remedy
    Path(".env").chmod(0o600)
    assert states(settings, "secrets") == ["ok"]


@pytest.mark.parametrize(
    ("credentials", "state"),
    [
        (None, "ok"),
        ("ana:short", "broken"),
        ("ana:aaaaaaaaaaaaaaaa", "broken"),
        ("admin:admin-admin-1", "broken"),
        ("ana:the-password-1", "broken"),
        ("no-user-at-all-9", "broken"),
        ("ana:9f2c61d0e7b84a35,bob:short", "broken"),
        ("ana:9f2c61d0e7b84a35", "ok"),
    ],
)
def test_credentials_of_flower_that_can_be_guessed_are_broken(
    settings: Settings, credentials: str | None, state: str
) -> None:
    (check,) = found(dataclasses.replace(settings, flower_basic_auth=credentials), "flower")
    assert check.state == state


@pytest.mark.parametrize(("address", "states_"), [("0.0.0.0", ["ok", "broken"]), ("127.0.0.1", ["ok"])])
def test_flower_on_more_than_loopback_is_seen_from_its_socket(
    settings: Settings, address: str, states_: list[str]
) -> None:
    with socket.socket() as listening:
        listening.bind((address, 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert states(dataclasses.replace(settings, flower_port=port), "flower") == states_


def test_a_broker_that_is_away_is_told_and_the_rest_is_still_looked_at(settings: Settings) -> None:
    away = dataclasses.replace(settings, broker_url="redis+socket:///no/such.sock")
    assert states(away, "broker") == ["broken"]
    assert states(away, "flower") == ["ok"]


@pytest.mark.redis
class TestWithABroker:
    @pytest.fixture
    def fleet(self, own_environment: Path) -> Iterator[Fleet]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        listen = f"bind 127.0.0.1\nport {port}"
        fleet = Fleet(own_environment, url=f"redis://127.0.0.1:{port}/0", listen=listen)
        try:
            yield fleet
        finally:
            fleet.close()

    def test_one_that_asks_for_no_password_is_broken(self, fleet: Fleet) -> None:
        (check,) = found(fleet.settings(), "password")
        assert check.state == "broken"
        assert "asks for no password: anybody who reaches it can have every VM deleted" in check.found

    def test_one_of_all_machines_is_worth_a_note_and_one_of_its_own_is_fine(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fleet.redis.config_set("requirepass", "sesame")
        own = dataclasses.replace(fleet.settings(), broker_url=fleet.url.replace("://", "://:sesame@"))
        assert states(own, "password") == ["ok"]  # one machine: one password
        monkeypatch.setattr("mikrom_reconcile.doctor.security.is_remote", lambda _: True)
        assert states(own, "tls") == ["broken"]
        assert states(own, "password") == ["note"]
        assert states(own, "orders") == ["note"]

    def test_key_files_are_looked_at_and_should_not_lie_together(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        private, public = fleet.folder / "signing.pem", fleet.folder / "verify.pem"
        make_pair(private, public)
        settings = dataclasses.replace(fleet.settings(), signing_key=private, verify_key=public)
        assert states(settings, "orders") == ["ok", "ok"]
        private.chmod(0o644)
        assert "has mode 0644" in found(settings, "orders")[0].found
        monkeypatch.setattr("mikrom_reconcile.doctor.security.is_remote", lambda _: True)
        assert states(settings, "orders") == ["broken", "ok", "note"]


def test_root_without_jails_is_noted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert states(settings, "user") == ["note"]
    assert states(dataclasses.replace(settings, jail="on"), "user") == ["ok"]

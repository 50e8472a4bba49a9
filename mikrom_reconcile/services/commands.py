"""How the services of a fleet are started: the command of each, and what it refuses to start without.

`mikrom worker`, `beat` and `flower` become Celery's own commands, so that what runs is what its users know from
Celery's documentation. No secret is ever an argument: they are in the environment. It must stay cheap to import.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from mikrom_reconcile.core.model.errors import SetupError, UsageError
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.settings import Settings, refuse_misspelt
from mikrom_reconcile.system import locks

Service = Literal["host", "control", "beat", "flower"]

APP = "mikrom_reconcile.celery_app"

SLOTS = 100
"""Actions and observations at once in a host worker; nearly all of them wait."""

_STARTING_S = 10.0

CONTROL_SLOTS = 8
"""Runs at once in a control worker: they wait for hosts, and planning has but one core anyway."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """What a running `mikrom up` says about itself in its connection file; no broker yet: it is still starting."""

    pid: int
    broker_url: str | None = None


def connection_file(settings: Settings) -> Path:
    """Where a running `mikrom up` is found: a 0600 file, locked for as long as it lives."""
    return settings.run_dir / "up.json"


def signing_key_of_up(settings: Settings) -> Path:
    """Where a `mikrom up` keeps the key of its control worker: its commands give orders, too."""
    return settings.run_dir / "signing.pem"


def find_up(settings: Settings) -> str | None:
    """The broker of the `mikrom up` that runs here, or None. Waits for one that is starting, but not for ever."""
    until = time.monotonic() + _STARTING_S
    while (connection := running_up(settings)) is not None:
        if connection.broker_url:
            return connection.broker_url
        if time.monotonic() > until:
            raise SetupError(
                f"`mikrom up` (pid {connection.pid}) is not ready yet; its terminal says what it waits for"
            )
        time.sleep(0.1)
    return None


def running_up(settings: Settings) -> Connection | None:
    """What the `mikrom up` that runs here says about itself, or None."""
    path = connection_file(settings)
    try:
        if not locks.is_taken(path):
            return None
        return msgspec.json.decode(path.read_bytes(), type=ready(Connection))
    except msgspec.MsgspecError:
        return Connection(pid=0)  # it is just being written
    except OSError:
        return None  # not ours to read


def command(service: Service, settings: Settings) -> list[str]:
    """The command line of a service."""
    return [sys.executable, "-m", "celery", "-A", APP, *arguments(service, settings)]


def arguments(service: Service, settings: Settings) -> list[str]:
    """What Celery is told for a service. Mingle and gossip cost a fleet messages by the square of its size."""
    quiet = ["--without-mingle", "--without-gossip"]
    match service:
        case "host":
            queue, name = f"{settings.queue}.{settings.host}", f"host@{settings.host}"
            pool = ["-P", "gevent", "-c", str(SLOTS)]
            return ["worker", *pool, "-Q", queue, "-n", name, "-l", "INFO", *quiet]
        case "control":
            name = f"control@{settings.host}"
            pool = ["-P", "threads", "-c", str(CONTROL_SLOTS)]
            return ["worker", *pool, "-Q", settings.queue, "-n", name, "-l", "INFO", *quiet]
        case "beat":
            return ["beat", "-l", "INFO"]
        case "flower":
            names = Path(__file__).with_name("flower_names.py")
            return ["flower", f"--conf={names}", "--address=127.0.0.1", f"--port={settings.flower_port}"]


_KEPT_FOR: dict[str, Service] = {
    "FLOWER_BASIC_AUTH": "flower",
    "MIKROM_SIGNING_KEY": "control",
    "MIKROM_VERIFY_KEY": "host",
}


def meant_for(service: Service | None, variables: Mapping[str, str]) -> dict[str, str]:
    """`variables` without those that only another service may know."""
    return {name: value for name, value in variables.items() if _KEPT_FOR.get(name, service) == service}


def environment(service: Service, settings: Settings) -> dict[str, str]:
    """What a service needs in its environment: the broker that was found, and the role that it plays."""
    role = "host" if service == "host" else "control"  # Beat and Flower are of the control side, and no host's worker
    return {"MIKROM_BROKER_URL": settings.broker_url or "", "MIKROM_WORKER_ROLE": role}


def role(settings: Settings) -> Service:
    """The kind of worker that the settings ask for."""
    return "control" if settings.worker_role == "control" else "host"


def check(service: Service, settings: Settings) -> Settings:
    """The settings with the broker that was found. Raises UsageError or SetupError when it cannot be started."""
    from mikrom_reconcile.dispatch.transport.broker import broker_url, connect

    refuse_misspelt()
    settings = replace(settings, broker_url=settings.broker_url or find_up(settings))
    if service in {"control", "beat"} and not settings.specs:
        raise UsageError("MIKROM_SPECS is not set: a service does not guess which specs it keeps applying")
    if settings.specs and settings.specs.startswith("git+"):
        from mikrom_reconcile.control.sources.git_url import GitPlace

        GitPlace.of(settings.specs)
    if service == "flower" and not settings.flower_basic_auth:
        raise UsageError("FLOWER_BASIC_AUTH is not set (user:password): Flower shows every task and can stop workers")
    if service == "flower":
        _refuse_a_taken_port(settings.flower_port)
    url = broker_url(settings)
    try:
        connect(url).close()
    except SetupError as error:
        if service not in {"host", "control"}:
            raise
        # a host's VMs have to be looked after meanwhile
        sys.stderr.write(f"mikrom worker: {error} Until then it waits.\n")
    return settings


def _refuse_a_taken_port(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise SetupError(f"Flower cannot listen on 127.0.0.1:{port}: {error.strerror}; set FLOWER_PORT") from error


def become(service: Service, settings: Settings) -> NoReturn:
    """Replace this process by the service, so that a supervisor watches the right one."""
    settings = check(service, settings)
    argv = command(service, settings)
    os.dup2(2, 1)  # Celery prints a banner, and ends with a traceback where nobody takes it
    os.execve(argv[0], argv, meant_for(service, os.environ) | environment(service, settings))  # noqa: S606 - without a shell, on purpose

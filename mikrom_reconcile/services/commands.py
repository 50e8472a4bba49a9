"""How the services of a fleet are started: the command of each, and what it refuses to start without.

`mikrom worker`, `beat` and `flower` become Celery's own commands, so that what runs is what its users know from
Celery's documentation. No secret is ever an argument: they are in the environment. It must stay cheap to import.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

from mikrom_reconcile.core.model.errors import SetupError, UsageError
from mikrom_reconcile.dispatch.transport.broker import broker_url, connect, find_up
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.settings import Settings, refuse_misspelt
from mikrom_reconcile.times_and_sizes import SERVICES

Service = Literal["host", "control", "beat", "flower"]

APP = "mikrom_reconcile.celery_app"


def command(service: Service, settings: Settings) -> list[str]:
    """The command line of a service."""
    return [sys.executable, "-m", "celery", "-A", APP, *arguments(service, settings)]


def arguments(service: Service, settings: Settings) -> list[str]:
    """What Celery is told for a service. Mingle and gossip cost a fleet messages by the square of its size."""
    if service == "beat":
        return ["beat", "-l", "INFO"]
    if service == "flower":
        names = Path(__file__).with_name("flower_names.py")
        return ["flower", f"--conf={names}", "--address=127.0.0.1", f"--port={settings.flower_port}"]
    pool, slots = ("gevent", SERVICES.host_slots) if service == "host" else ("threads", SERVICES.control_slots)
    queue = Keys(settings.queue).host_queue(settings.host) if service == "host" else settings.queue
    name = f"{service}@{settings.host}"
    quiet = ["--without-mingle", "--without-gossip"]
    return ["worker", "-P", pool, "-c", str(slots), "-Q", queue, "-n", name, "-l", "INFO", *quiet]


_KEPT_FOR: dict[str, Service] = {
    "FLOWER_BASIC_AUTH": "flower",
    "MIKROM_SIGNING_KEY": "control",
    "MIKROM_VERIFY_KEY": "host",
}


def environment(service: Service, settings: Settings, **chosen: str) -> dict[str, str]:
    """This process's, with the broker that was found, the role that a service plays, and what else was `chosen` for it.

    Without the secrets that only another service may know.
    """
    role = "host" if service == "host" else "control"  # Beat and Flower are of the control side, and no host's worker
    own = {"MIKROM_BROKER_URL": settings.broker_url or "", "MIKROM_WORKER_ROLE": role}
    variables = os.environ | own | chosen
    return {name: value for name, value in variables.items() if _KEPT_FOR.get(name, service) == service}


def role(settings: Settings) -> Service:
    """The kind of worker that the settings ask for."""
    return "control" if settings.worker_role == "control" else "host"


def check(service: Service, settings: Settings) -> Settings:
    """The settings with the broker that was found. Raises UsageError or SetupError when it cannot be started."""
    refuse_misspelt()
    settings = replace(settings, broker_url=settings.broker_url or find_up(settings))
    if service in {"control", "beat"} and not settings.specs:
        raise UsageError("MIKROM_SPECS is not set: a service does not guess which specs it keeps applying")
    if settings.specs and settings.specs.startswith("git+"):
        from mikrom_reconcile.control.sources.git import GitPlace

        GitPlace.of(settings.specs)
    if service == "flower":
        check_flower(settings)
    url = broker_url(settings)
    try:
        connect(url).close()
    except SetupError as error:
        if service not in {"host", "control"}:
            raise
        # a host's VMs have to be looked after meanwhile
        sys.stderr.write(f"mikrom worker: {error} Until then it waits.\n")
    return settings


def check_flower(settings: Settings) -> None:
    """Raises UsageError without credentials, and SetupError when its port is taken."""
    if not settings.flower_basic_auth:
        raise UsageError("FLOWER_BASIC_AUTH is not set (user:password): Flower shows every task and can stop workers")
    port = settings.flower_port
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise SetupError(f"Flower cannot listen on 127.0.0.1:{port}: {error.strerror}; set FLOWER_PORT") from error


def become(service: Service, settings: Settings) -> NoReturn:
    """Replace this process by the service, so that a supervisor watches the right one."""
    settings = check(service, settings)
    argv = command(service, settings)
    os.dup2(2, 1)  # Celery prints a banner, and ends with a traceback where nobody takes it
    os.execve(argv[0], argv, environment(service, settings))  # noqa: S606 - without a shell, on purpose

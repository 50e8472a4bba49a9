"""The services of one machine as children: their commands, files and environment, and how each shows that it is ready.

Redis listens on a socket file only and reads its password from a 0600 file, so that no argument list shows a secret.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from redis import Redis, RedisError

from mikrom_reconcile.core.model.errors import SetupError, UsageError
from mikrom_reconcile.dispatch.transport.broker import broker_url, client_of
from mikrom_reconcile.dispatch.transport.heartbeats import starts
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.dispatch.transport.signing import make_pair
from mikrom_reconcile.services.commands import Service, command, environment, meant_for, signing_key_of_up
from mikrom_reconcile.services.supervise import Child
from mikrom_reconcile.settings import Settings, refuse_misspelt

_SOCKET_PATH_BYTES = 107  # sun_path of Linux, without its final zero
_ANSWER_S = 1.0
_LARGEST_MIB = 512  # some messages of the largest size that is allowed, beside thousands of usual ones
_VERIFY_KEY = "verify.pem"


def private_settings(settings: Settings) -> Settings:
    """The settings of the services: with a broker, credentials for Flower, and an absolute path of the specs.

    Raises UsageError and SetupError for what cannot work.
    """
    refuse_misspelt()
    if settings.broker_url:
        raise UsageError("MIKROM_BROKER_URL is set, but `mikrom up` brings its own Redis: unset it")
    for program, package in (("redis-server", "redis-server"), ("setpriv", "util-linux")):
        if shutil.which(program) is None:
            raise SetupError(f"{program} is not installed; as root: apt-get install {package}")
    socket = settings.run_dir / "redis.sock"
    if len(os.fsencode(socket)) > _SOCKET_PATH_BYTES:
        raise UsageError(f"MIKROM_RUN_DIR={settings.run_dir}: too long for a socket path, {_SOCKET_PATH_BYTES} bytes")
    specs = settings.chosen_specs()
    return replace(
        settings,
        broker_url=f"redis+socket://:{secrets.token_urlsafe(24)}@{quote(str(socket))}",
        flower_basic_auth=settings.flower_basic_auth or f"mikrom:{secrets.token_urlsafe(12)}",
        specs=specs if specs.startswith("git+") else str(Path(specs).absolute()),
    )


def logs_of(settings: Settings) -> Path:
    """Where each service's log is, begun anew by each `mikrom up`."""
    return settings.state_dir / "log"


def redis_child(settings: Settings) -> Child:
    """The private Redis. It keeps nothing: whatever it holds may be lost."""
    url = broker_url(settings)
    conf = settings.run_dir / "redis.conf"
    lines = [
        "port 0",
        f'unixsocket "{settings.run_dir / "redis.sock"}"',
        "unixsocketperm 700",
        f"requirepass {urlsplit(url).password}",
        'save ""',
        f"maxmemory {_LARGEST_MIB}mb",
        "maxmemory-policy noeviction",  # what it dropped by itself might be an order; who is refused is told
        f'dir "{settings.run_dir}"',
    ]
    conf.touch(mode=0o600)
    conf.chmod(0o600)
    conf.write_text("\n".join(lines) + "\n")
    client = client_of(url, read_s=_ANSWER_S)
    return Child(
        "redis",
        ["redis-server", str(conf)],
        meant_for(None, os.environ),
        log=logs_of(settings) / "redis.log",
        is_ready=lambda _: _answers(client),
    )


def service_children(settings: Settings) -> list[Child]:
    """Workers, Beat and Flower. The workers get a pair of keys that lasts as long as they do."""
    make_pair(signing_key_of_up(settings), settings.run_dir / _VERIFY_KEY)
    redis = client_of(broker_url(settings), read_s=_ANSWER_S)
    keys = Keys(settings.queue)
    owners: dict[Service, Callable[[int], str]] = {
        "host": lambda _: f"host:{settings.host}",
        "control": lambda pid: f"control:{settings.host}:{pid}",
        "beat": lambda pid: f"beat:{settings.host}:{pid}",
    }

    def beats(service: Service) -> Callable[[int], bool]:
        return lambda pid: _has_started(redis, keys, owners[service](pid), pid)

    return [
        *(_child(service, settings, is_ready=beats(service)) for service in owners),
        _child("flower", settings, is_ready=lambda _: _is_healthy(settings.flower_port)),
    ]


def apply_child(settings: Settings) -> Child:
    """`mikrom apply` of the specs, once, in this terminal."""
    argv = [sys.executable, "-m", "mikrom_reconcile", "apply", settings.specs or "", "--yes"]
    return Child("apply", argv, _environment("control", settings))


def _environment(service: Service, settings: Settings) -> dict[str, str]:
    """Ours, and what was chosen for this time, as far as it concerns the service."""
    chosen = {
        "MIKROM_SPECS": settings.specs or "",
        "MIKROM_SIGNING_KEY": str(signing_key_of_up(settings)),
        "MIKROM_VERIFY_KEY": str(settings.run_dir / _VERIFY_KEY),
        "FLOWER_BASIC_AUTH": settings.flower_basic_auth or "",
    }
    return meant_for(service, os.environ | environment(service, settings) | chosen)


def _child(service: Service, settings: Settings, *, is_ready: Callable[[int], bool]) -> Child:
    return Child(
        service,
        command(service, settings),
        _environment(service, settings),
        log=logs_of(settings) / f"{service}.log",
        is_ready=is_ready,
    )


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def _has_started(redis: Redis, keys: Keys, owner: str, pid: int) -> bool:
    try:
        start_id = starts(redis, keys, [owner]).get(owner, b"")
    except RedisError:
        return False
    return start_id.partition(b"-")[0] == str(pid).encode()


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    try:
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

"""The way to Redis: one URL in three spellings, one client, and a quick answer when nobody is there.

Celery and kombu say `redis+socket://`, redis-py says `unix://`. A client of ours never retries by itself: who is
told within 3 s that the broker is away can do something about it. A TLS connection without a certificate that was
verified is never made. It must never print a password.
"""

from __future__ import annotations

import secrets
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import msgspec

from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.errors import SetupError, UsageError
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.system import locks
from mikrom_reconcile.times_and_sizes import BROKER, SERVICES

if TYPE_CHECKING:
    from redis import Redis

SCHEMES = ("redis", "rediss", "redis+socket")


def broker_url(settings: Settings) -> str:
    """The URL of the broker. Raises UsageError when none is set or its scheme is not ours."""
    url = settings.broker_url
    if not url:
        raise UsageError("MIKROM_BROKER_URL is not set and no `mikrom up` runs here; example: redis://broker:6379/0")
    if urlsplit(url).scheme not in SCHEMES:
        raise UsageError(f"MIKROM_BROKER_URL={without_password(url)}: must begin with {'://, '.join(SCHEMES)}://")
    split_tls(url)
    return url


def user_of(redis: Redis) -> str:
    """The name by which the broker knows this client; "default" where it has no users."""
    found: Any = redis.acl_whoami()
    return found.decode() if isinstance(found, bytes) else str(found)


def is_remote(url: str) -> bool:
    """Whether the broker is on another machine, or may be."""
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return parts.scheme != "redis+socket" and not loopback


def split_tls(url: str) -> tuple[str, dict[str, Any]]:
    """The URL, and what its TLS connections demand: nothing but for rediss://. Raises UsageError.

    `?ssl_ca_certs=FILE` names the authority, else it is those that this machine trusts. Not to verify is no choice.
    """
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return url, {}
    asked = dict(parse_qsl(parts.query))
    authority = asked.pop("ssl_ca_certs", None)
    if asked.pop("ssl_cert_reqs", "required").removeprefix("CERT_").lower() != "required" or asked:
        raise UsageError(
            f"MIKROM_BROKER_URL={without_password(url)}: only ?ssl_ca_certs=FILE may follow; certificates are verified"
        )
    if authority and not Path(authority).is_file():
        raise UsageError(f"MIKROM_BROKER_URL={without_password(url)}: there is no file ssl_ca_certs={authority}")
    return urlunsplit(parts._replace(query="")), {"ssl_cert_reqs": "required", "ssl_ca_certs": authority}


def without_password(url: str) -> str:
    """`url` fit for a message."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    user = parts.username or ""
    secret = ":***" if parts.password else ""
    return urlunsplit(parts._replace(netloc=f"{user}{secret}@{address}" if user or secret else address, query=""))


def connect(url: str) -> Redis:
    """A client of Redis that has answered a PING. Raises SetupError within 3 s."""
    from redis import RedisError  # noqa: PLC0415 - 134 ms that only a fleet pays

    try:
        with client_of(url, read_s=BROKER.ping_s) as probe:
            probe.ping()
    except (RedisError, OSError, ValueError) as error:
        raise SetupError(
            f"no answer from the broker {without_password(url)}: {error}; {_remedy(str(error))}"
        ) from error
    return client_of(url)


def fleet_id(settings: Settings) -> str:
    """What tells this fleet from every other, by whatever URL it is reached; another one once Redis was emptied."""
    key = f"{Keys(settings.queue).prefix}:id"
    with connect(broker_url(settings)) as redis:
        redis.set(key, secrets.token_hex(8), nx=True)
        found: Any = redis.get(key)
        return bytes(found).decode()


def _remedy(error: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in error:
        return "if it is yours, name its authority: MIKROM_BROKER_URL=rediss://…?ssl_ca_certs=FILE"
    if "password" in error or "uthentication" in error:
        return "are user and password in MIKROM_BROKER_URL right?"
    return "is Redis running, MIKROM_BROKER_URL right?"


def client_of(url: str, *, read_s: float = BROKER.read_s) -> Redis:
    """A client that has not connected yet; it may be shared by threads and greenlets."""
    from redis import Redis  # noqa: PLC0415 - see above
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    url, tls = split_tls(url)
    return Redis.from_url(
        url.replace("redis+socket://", "unix://", 1),
        **tls,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=BROKER.connect_s,
        socket_timeout=read_s,
    )


class RunningUp(msgspec.Struct, frozen=True, kw_only=True):
    """What a running `mikrom up` says about itself in its file; no broker yet: it is still starting."""

    pid: int
    broker_url: str | None = None


def up_file(settings: Settings) -> Path:
    """Where a running `mikrom up` is found: a 0600 file, locked for as long as it lives."""
    return settings.run_dir / "up.json"


def signing_key_of_up(settings: Settings) -> Path:
    """Where a `mikrom up` keeps the key of its control worker: its commands give orders, too."""
    return settings.run_dir / "signing.pem"


def find_up(settings: Settings) -> str | None:
    """The broker of the `mikrom up` that runs here, or None. Waits for one that is starting, but not for ever."""
    until = time.monotonic() + SERVICES.starting_s
    while (found := running_up(settings)) is not None:
        if found.broker_url:
            return found.broker_url
        if time.monotonic() > until:
            raise SetupError(f"`mikrom up` (pid {found.pid}) is not ready yet; its terminal says what it waits for")
        time.sleep(0.1)
    return None


def running_up(settings: Settings) -> RunningUp | None:
    """What the `mikrom up` that runs here says about itself, or None."""
    path = up_file(settings)
    try:
        if not locks.is_taken(path):
            return None
        return msgspec.json.decode(path.read_bytes(), type=ready(RunningUp))
    except msgspec.MsgspecError:
        return RunningUp(pid=0)  # it is just being written
    except OSError:
        return None  # not ours to read

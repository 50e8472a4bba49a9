"""The way to Redis: one URL in three spellings, one client, and a quick answer when nobody is there.

Celery and kombu say `redis+socket://`, redis-py says `unix://`. A client of ours never retries by itself: who is
told within 3 s that the broker is away can do something about it. It must never print a password.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from mikrom_reconcile.core.errors import SetupError, UsageError
from mikrom_reconcile.settings import Settings

if TYPE_CHECKING:
    from redis import Redis

SCHEMES = ("redis", "rediss", "redis+socket")

_CONNECT_S = 1.0  # a host name may have two addresses, and both together have to stay below 3 s
_PING_S = 1.5
_READ_S = 5.0  # longer than any blocking read asks the server to wait


def broker_url(settings: Settings) -> str:
    """The URL of the broker. Raises UsageError when none is set or its scheme is not ours."""
    url = settings.broker_url
    if not url:
        raise UsageError("MIKROM_BROKER_URL is not set and no `mikrom up` runs here; example: redis://broker:6379/0")
    if urlsplit(url).scheme not in SCHEMES:
        raise UsageError(f"MIKROM_BROKER_URL={without_password(url)}: must begin with {'://, '.join(SCHEMES)}://")
    return url


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
        with client_of(url, read_s=_PING_S) as probe:
            probe.ping()
    except (RedisError, OSError, ValueError) as error:
        raise SetupError(
            f"no answer from the broker {without_password(url)}: {error}; is Redis running, MIKROM_BROKER_URL right?"
        ) from error
    return client_of(url)


def client_of(url: str, *, read_s: float = _READ_S) -> Redis:
    """A client that has not connected yet; it may be shared by threads and greenlets."""
    from redis import Redis  # noqa: PLC0415 - see above
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    return Redis.from_url(
        url.replace("redis+socket://", "unix://", 1),
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=_CONNECT_S,
        socket_timeout=read_s,
    )

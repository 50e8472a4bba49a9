"""The way to Redis: names of keys, a URL in three spellings, clients that never retry, and verify TLS."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import msgspec

from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.errors import SetupError, UsageError
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.system import locks
from mikrom_reconcile.times_and_sizes import BROKER, SERVICES

if TYPE_CHECKING:
    from redis import Redis

FIRST, LAST = 0, 8  # priorities, lower first: people who look; the ticks of Beat

ORDERS = {False: (2, 4), True: (6, 8)}
"""Priorities of orders by whether they are scheduled: those that make room (stop and delete), and all others."""

STEPS = (FIRST, *ORDERS[False], *ORDERS[True])


def _key(form: str) -> Callable[[Keys, str], str]:
    return lambda keys, name: f"{keys.prefix}:{form.format(name)}"


class Keys:
    """The names that follow from the control queue's; what is a host's is under its name, for ACLs. All may be lost."""

    # of an owner ("host:hv01", "control:hv01", "beat:hv01"; of unacknowledged messages "host:hv01" or "control")
    heartbeat = _key("alive:{}")  # start id of its process, while that lives
    unacked = _key("unacked:{}")  # where Celery keeps the messages that it has fetched but not begun
    # of a host
    known = _key("known:{}")  # exists for a day after its worker was last seen
    machine = _key("machine:{}")  # which machine has this name, until a person says otherwise
    given_up = _key("given-up:{}")  # machines that had its name, until they are back and have stopped what they run
    history = _key("history:host:{}")  # what it did by itself, as `control.stores` keeps it
    # of a call
    call = _key("call:{}")  # exists while somebody waits for it: without it no order is carried out
    # of a run
    request = _key("run:{}:request")  # with its source tree
    plan = _key("run:{}:plan")  # the one that was shown; an apply names it and does not bring its own
    unfinished = _key("run:{}:unfinished")  # how far it is while it has no report, or why it has none
    # of an entry of Beat's ("reconcile")
    tick = _key("tick:{}")  # the tick of the present interval; whichever Beat sets it sends it

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.prefix = queue.removesuffix(":queue")
        self.source = f"{self.prefix}:source"  # what the last look at MIKROM_SPECS gave, for who looks
        self.good_specs = f"{self.prefix}:source:good"  # the last good ones that any control worker has seen
        self.vms = f"{self.prefix}:vms"  # what runs have seen of each host last, and of each project there
        self.run_times = f"{self.prefix}:run-times"  # when each project's last whole run ended, and converged
        self.told = f"{self.prefix}:told"  # what each webhook was told last
        self.next_run = f"{self.prefix}:next-run"  # when it is due, as Beat says and who had the last tick

    def host_queue(self, host: str) -> str:
        """Queue that only the worker of `host` consumes."""
        return f"{self.queue}.{host}"

    def lists(self, queue: str) -> list[str]:
        """Where Celery keeps the messages of a queue: a list for each step of priority, the first without a mark."""
        return [f"{queue}\x06\x16{step}" if step else queue for step in STEPS]

    def answers(self, call: str, owner: str) -> str:
        """Stream of what `owner` ("host:hv01", "control") answers to this call."""
        return f"{self.prefix}:answers:{call}:{owner}"


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


def is_remote(url: str) -> bool:
    """Whether the broker is on another machine, or may be."""
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    if parts.scheme == "redis+socket" or host == "localhost":
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return True


def split_tls(url: str) -> tuple[str, dict[str, Any]]:
    """The URL, and what its TLS connections demand: certificates are verified, by `?ssl_ca_certs=FILE` if given."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return url, {}
    asked, named = dict(parse_qsl(parts.query)), f"MIKROM_BROKER_URL={without_password(url)}"
    authority = asked.pop("ssl_ca_certs", None)
    if asked.pop("ssl_cert_reqs", "required").removeprefix("CERT_").lower() != "required" or asked:
        raise UsageError(f"{named}: only ?ssl_ca_certs=FILE may follow; certificates are verified")
    if authority and not Path(authority).is_file():
        raise UsageError(f"{named}: there is no file ssl_ca_certs={authority}")
    return urlunsplit(parts._replace(query="")), {"ssl_cert_reqs": "required", "ssl_ca_certs": authority}


def without_password(url: str) -> str:
    """`url` fit for a message."""
    parts = urlsplit(url)
    _, at, address = parts.netloc.rpartition("@")
    who = (parts.username or "") + (":***" if parts.password else "")
    return urlunsplit(parts._replace(netloc=f"{who}{at if who else ''}{address}", query=""))


def connect(url: str) -> Redis:
    """A client of Redis that has answered a PING. Raises SetupError within 3 s."""
    from redis import RedisError  # noqa: PLC0415 - 134 ms that only a fleet pays

    try:
        with client_of(url, read_s=BROKER.ping_s) as probe:
            probe.ping()
    except (RedisError, OSError, ValueError) as error:
        address, remedy = without_password(url), _remedy(str(error))
        raise SetupError(f"no answer from the broker {address}: {error}; {remedy}") from error
    return client_of(url)


def fleet_id(settings: Settings) -> str:
    """What tells this fleet from every other, by whatever URL it is reached; another one once Redis was emptied."""
    key = f"{Keys(settings.queue).prefix}:id"
    with connect(broker_url(settings)) as redis:
        redis.set(key, secrets.token_hex(8), nx=True)
        return cast("bytes", redis.get(key)).decode()


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
    url, limits = url.replace("redis+socket://", "unix://", 1), {"socket_connect_timeout": BROKER.connect_s}
    return Redis.from_url(url, **tls, **limits, socket_timeout=read_s, protocol=2, retry=Retry(NoBackoff(), 0))


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
    with suppress(OSError):  # not ours to read
        if locks.is_taken(path):
            return decoded(path.read_bytes(), RunningUp) or RunningUp(pid=0)  # it is just being written
    return None

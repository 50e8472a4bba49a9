"""Writes the users of a fleet's Redis: `python make_acl.py FOLDER BROKER HOST...`, again whenever a host comes or goes.

    FOLDER/users.acl             for Redis (`aclfile`): SHA-256 digests of the passwords, no password
    FOLDER/<user>.env            MIKROM_BROKER_URL with the user's password: goes to that machine, 0600, to no other

BROKER is the URL without a user: rediss://redis.example.net:6380/0?ssl_ca_certs=/etc/mikrom/ca.pem. A user whose
.env is there keeps its password. The queue is that of CELERY_QUEUE_NAME.

One user per host, and none for strangers. A host reaches its own queue and what it has fetched from it, its heartbeat,
and the streams of its own answers: not another host's, not the control queue, nothing that commands workers. Needs
Redis 7, whose rules tell reading from writing.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mikrom_reconcile import settings
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.system.files import make_folder, write_whole

_VARIABLE = "MIKROM_BROKER_URL="
_COMMANDS_TO_WORKERS, _REPLIES = "celery.pidbox", "reply.celery.pidbox"

# redis-py greets and pings, kombu fetches, acknowledges and restores, the rest is ours. None of it lists keys
_COMMANDS = (
    "-@all +@connection -@dangerous +acl|whoami +multi +exec +discard +watch +unwatch"
    " +eval +evalsha +script|exists +script|load"
    " +brpop +rpop +lpush +rpush +llen +hget +hset +hdel +zadd +zrem +zrange +sadd +srem +smembers"
    " +get +set +del +exists +expire +pexpire +xadd +publish"
)
_LISTEN = "+subscribe +psubscribe +unsubscribe +punsubscribe"


def main(folder: Path, broker: str, hosts: list[str]) -> None:
    """Write the ACL file and one .env per user."""
    make_folder(folder)
    rules = acl_rules(Keys(settings.load().queue), hosts, database=int(urlsplit(broker).path.strip("/") or 0))
    digests = {user: hashlib.sha256(_password(folder, broker, user).encode()).hexdigest() for user in rules}
    write_whole(folder / "users.acl", "".join(f"{line}\n" for line in acl_lines(rules, digests)).encode())
    print(f"{folder}/users.acl: {', '.join(rules)}; each one's URL is in {folder}/<user>.env")


def _password(folder: Path, broker: str, user: str) -> str:
    """The password in the user's .env, which is made or brought up to `broker`."""
    file = folder / f"{user}.env"
    kept = urlsplit(file.read_text().removeprefix(_VARIABLE).strip()).password if file.exists() else None
    password = kept or secrets.token_hex(24)
    scheme, _, address = broker.partition("://")
    write_whole(file, f"{_VARIABLE}{scheme}://{user}:{password}@{address}\n".encode())
    return password


def acl_rules(keys: Keys, hosts: Iterable[str], *, database: int = 0) -> dict[str, str]:
    """What each user may do: "admin", "control" (workers, Beat, commands), "flower", and "host-<host>" for each."""
    return {
        "admin": "~* &* +@all",
        "control": f"~{keys.prefix}:* ~{keys.queue}* ~_kombu.* ~*.celery.pidbox* ~celery* &* +@all -@dangerous -@admin",
        "flower": _flower(keys, database),
        **{f"host-{host}": _host(keys, host, database) for host in hosts},
    }


def acl_lines(rules: Mapping[str, str], digests: Mapping[str, str]) -> list[str]:
    """The lines of the ACL file; `digests` has the SHA-256 of each user's password in hexadecimal."""
    return ["user default off", *(f"user {name} on #{digests[name]} {rule}" for name, rule in rules.items())]


def _host(keys: Keys, host: str, database: int) -> str:
    queue, owner = keys.host_queue(host), f"host:{host}"
    own = [
        *_with_priorities(queue),
        *_bindings(queue, _COMMANDS_TO_WORKERS),
        *_with_priorities(f"host@{host}.{_COMMANDS_TO_WORKERS}"),
        *_fetched(keys, owner),
        keys.heartbeat(owner),
        keys.known(host),
        keys.machine(host),
        keys.given_up(host),
        keys.history(host),
        f"{keys.history(host)}:order",
    ]
    read = [keys.call("*"), f"_kombu.binding.{_REPLIES}"]
    written = [keys.answers("*", owner), f"[0-9a-f]*.{_REPLIES}"]
    return " ".join(
        [
            _COMMANDS,
            *(f"~{key}" for key in own),
            *(f"%R~{key}" for key in read),
            *(f"%W~{key}" for key in written),
            f"&/{database}.celeryev/*",
            f"({_LISTEN} &/{database}.{_COMMANDS_TO_WORKERS})",  # hears commands for workers, and cannot give any
        ]
    )


def _flower(keys: Keys, database: int) -> str:
    own = [
        *(f"[0-9a-f]*.{_REPLIES}*", "celeryev.*", "_kombu.binding_deadlines"),
        *_bindings(_REPLIES, _COMMANDS_TO_WORKERS, "celeryev"),
        *_fetched(keys, "control"),
    ]
    return " ".join(
        [
            f"{_COMMANDS} {_LISTEN} +time +zrangebyscore",
            *(f"~{key}" for key in own),
            f"%R~{keys.queue}*",
            f"&/{database}.celeryev/* &/{database}.{_COMMANDS_TO_WORKERS}",
        ]
    )


def _fetched(keys: Keys, owner: str) -> list[str]:
    unacked = keys.unacked(owner)
    return [unacked, f"{unacked}:index", f"{unacked}:mutex"]


def _bindings(*exchanges: str) -> list[str]:
    """Where kombu notes the queues of an exchange; what goes to all workers is published, and none is noted."""
    return [f"_kombu.{kind}.{exchange}" for exchange in exchanges for kind in ("binding", "binding_permanent")]


def _with_priorities(queue: str) -> list[str]:
    """The lists of a queue: kombu joins name and priority by characters that no name has."""
    return [queue, f"{queue}[^-._0-9A-Za-z]*"]


if __name__ == "__main__":
    if len(sys.argv) < 4 or "://" not in sys.argv[2]:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2], [settings.host_name(host) for host in sys.argv[3:]])
    except ValueError as error:
        sys.exit(f"make_acl.py: {error}")

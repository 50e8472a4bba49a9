"""What of this set-up an intruder could use, and the way to close it; a `note` helps one who is in already."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.dispatch.transport.broker import connect, is_remote, without_password
from mikrom_reconcile.doctor.machine import Look, broken, folder_check, note, ok
from mikrom_reconcile.output.doctor import Check
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import DOCTOR

_GUIDE = "see docs/security.md"
_LISTENS = "0A"
_LOOPBACK = re.compile("(0{16}FFFF0000)?[0-9A-F]{6}7F|0{24}01000000")
"""127.0.0.0/8, the same inside IPv6, and ::1, as /proc writes them."""


def _user(settings: Settings) -> Check:
    if os.geteuid() != 0:
        return ok(f"uid {os.geteuid()}: a VMM can do no more than it")
    if settings.jail == "on":
        return ok("root, and each VMM in a jail as a user of its own")
    remedy = "MIKROM_JAIL=on, or the host worker as a user of its own in group kvm: no tap then"
    return note("root: a guest that breaks out of its VMM is root", remedy)


def _environment_files(_settings: Settings) -> Iterator[Check]:
    for path in (Path(".env").absolute(), *sorted(Path("/etc/mikrom").glob("*env"))):
        if path.is_file():
            mode = stat.S_IMODE(path.stat().st_mode)
            found = f"{path} has mode {mode:04o}: everybody here reads the secrets in it"
            yield broken(found, f"chmod 600 {path}") if mode & 0o007 else ok(f"{path} ({mode:04o})")


def _broker(settings: Settings) -> Iterator[Check]:
    url = wiring.broker_of(settings)
    if url is None:
        yield ok("none: embedded, nothing listens and no order travels")
        return
    yield from _orders(settings, remote=is_remote(url))
    shown, remote = without_password(url), is_remote(url)
    if remote and urlsplit(url).scheme != "rediss":
        found = f"{shown} on another machine without TLS: passwords and orders can be read and changed on the way"
        yield Check("tls", "broken", found, f"rediss://, {_GUIDE}")
    else:
        yield Check("tls", "ok", "verified certificates" if remote else f"{shown} is on this machine")
    with connect(url) as redis:
        user = str(redis.acl_whoami())
    remedy = f"a user for each machine, {_GUIDE}"
    if not urlsplit(url).password:
        found = f"{shown} asks for no password: anybody who reaches it can have every VM deleted"
        yield Check("password", "broken", found, remedy)
    elif user == "default" and remote:
        yield Check("password", "note", "one password for all: an intruder on one host has the queues of all", remedy)
    else:
        yield Check("password", "ok", f"user {user}")


def _orders(settings: Settings, *, remote: bool) -> Iterator[Check]:
    """Whether they are signed; on one machine nothing is between control and its host."""
    from mikrom_reconcile.dispatch.transport.signing import Signer, Verifier

    for path, key in ((settings.signing_key, Signer), (settings.verify_key, Verifier)):
        if path is not None:
            try:
                key(path)
                yield Check("orders", "ok", f"{path} is a good {key.__name__.lower()}'s key")
            except MikromError as error:
                yield Check("orders", "broken", str(error), _GUIDE)
    if not remote:
        return
    if settings.signing_key and settings.verify_key:
        found = "both keys are here: an intruder on a host could sign orders for all"
        yield Check("orders", "note", found, "MIKROM_SIGNING_KEY only where control runs alone")
    elif not settings.signing_key and not settings.verify_key:
        found = "unsigned: anybody who can write to a host's queue commands the host"
        yield Check("orders", "note", found, f"MIKROM_SIGNING_KEY for control, MIKROM_VERIFY_KEY for hosts, {_GUIDE}")


def _flower(settings: Settings) -> Iterator[Check]:
    yield _flower_password(settings)
    if _is_open_to_others(settings.flower_port):
        found = f"port {settings.flower_port} listens on more than loopback"
        yield broken(found, "`mikrom flower`, behind deploy/nginx/flower.conf")


def _flower_password(settings: Settings) -> Check:
    if not settings.flower_basic_auth:
        return ok("no FLOWER_BASIC_AUTH: it does not start here")
    least = DOCTOR.password_characters
    for pair in settings.flower_basic_auth.split(","):
        user, _, password = pair.partition(":")
        known = any(word in password.lower() for word in (user.lower(), "password", "secret", "change"))
        if known or len(password) < least or len(set(password)) < least / 2:
            found = f"the password of {user or 'an empty user'} in FLOWER_BASIC_AUTH can be guessed"
            return broken(found, f"at least {least} random characters: openssl rand -hex 16")
    return ok("FLOWER_BASIC_AUTH has no password that is easily guessed")


def _is_open_to_others(port: int) -> bool:
    tables = (path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists())
    lines = (line.split() for table in tables for line in table.read_text(encoding="ascii").splitlines()[1:])
    listening = (local.partition(":") for _, local, _, state, *_ in lines if state == _LISTENS)
    return any(int(number, 16) == port and not _LOOPBACK.fullmatch(address) for address, _, number in listening)


CHECKS: dict[str, Look] = {
    "user": _user,
    "state folder": lambda settings: folder_check("MIKROM_STATE_DIR", settings.state_dir, strict=True),
    "run folder": lambda settings: folder_check("MIKROM_RUN_DIR", settings.run_dir, strict=True),
    "secrets": _environment_files,
    "broker": _broker,
    "flower": _flower,
}

"""What of this set-up an intruder could use, one by one, with the way to close it. Looks, and changes nothing.

`broken` is what somebody on the network or another user of this machine can use as it is; `note` is what helps an
intruder who has got somewhere already.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mikrom_reconcile import wiring
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.dispatch.transport.broker import connect, is_remote, user_of, without_password
from mikrom_reconcile.limits import DOCTOR
from mikrom_reconcile.output.doctor_text import Check
from mikrom_reconcile.settings import Settings

_GUIDE = "see docs/security.md"
_LISTENS = "0A"
_LOOPBACK = re.compile("(0{16}FFFF0000)?[0-9A-F]{6}7F|0{24}01000000")
"""127.0.0.0/8, the same inside IPv6, and ::1, as /proc writes them."""


def security_checks(settings: Settings) -> Iterator[Check]:
    """Each of them with what was found, where, and how to mend it."""
    yield _user(jailed=settings.jail == "on")
    yield _folder("state folder", settings.state_dir)
    yield _folder("run folder", settings.run_dir)
    for file in (Path(".env"), *sorted(Path("/etc/mikrom").glob("*env"))):
        if file.is_file():
            yield _environment_file(file)
    try:
        url = wiring.broker_of(settings)
        if url is None:
            yield Check(name="broker", state="ok", found="none: embedded, nothing listens and no order travels")
        else:
            yield from _orders(settings, remote=is_remote(url))
            yield from _broker(url)
    except MikromError as error:
        yield Check(name="broker", state="broken", found=str(error), remedy="mend that first, then ask again")
    yield _flower(settings)
    if _is_open_to_others(settings.flower_port):
        found = f"port {settings.flower_port} listens on more than loopback"
        yield Check(
            name="flower", state="broken", found=found, remedy="`mikrom flower`, behind deploy/nginx/flower.conf"
        )


def _user(*, jailed: bool) -> Check:
    if os.geteuid() != 0:
        return Check(name="user", state="ok", found=f"uid {os.geteuid()}: a VMM can do no more than it")
    if jailed:
        return Check(name="user", state="ok", found="root, and each VMM in a jail as a user of its own")
    remedy = "MIKROM_JAIL=on, or the host worker as a user of its own in group kvm: no tap then"
    return Check(name="user", state="note", found="root: a guest that breaks out of its VMM is root", remedy=remedy)


def _folder(name: str, folder: Path) -> Check:
    try:
        found = folder.stat()
    except FileNotFoundError:
        return Check(name=name, state="ok", found=f"{folder} will be made, closed to others")
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        text = f"{folder} belongs to uid {found.st_uid}, not to this user"
        return Check(
            name=name, state="broken", found=text, remedy=f"chown it to uid {os.geteuid()}, or ask as its owner"
        )
    if mode & 0o077:
        return Check(name=name, state="broken", found=f"{folder} has mode {mode:04o}", remedy=f"chmod 700 {folder}")
    return Check(name=name, state="ok", found=f"{folder} ({mode:04o})")


def _environment_file(file: Path) -> Check:
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o007:
        found = f"{file.absolute()} has mode {mode:04o}: everybody here reads the secrets in it"
        return Check(name="secrets", state="broken", found=found, remedy=f"chmod 600 {file.absolute()}")
    return Check(name="secrets", state="ok", found=f"{file.absolute()} ({mode:04o})")


def _broker(url: str) -> Iterator[Check]:
    """Its network, its password, and whose name it knows us by."""
    shown, remote = without_password(url), is_remote(url)
    if remote and urlsplit(url).scheme != "rediss":
        found = f"{shown} on another machine without TLS: passwords and orders can be read and changed on the way"
        yield Check(name="tls", state="broken", found=found, remedy=f"rediss://, {_GUIDE}")
    else:
        yield Check(name="tls", state="ok", found="verified certificates" if remote else f"{shown} is on this machine")
    with connect(url) as redis:
        user = user_of(redis)
    if not urlsplit(url).password:
        found = f"{shown} asks for no password: whoever reaches it can have every VM deleted"
        yield Check(name="password", state="broken", found=found, remedy=f"a user for each machine, {_GUIDE}")
    elif user == "default" and remote:
        found = "one password for all: who has one host has the queues of all"
        yield Check(name="password", state="note", found=found, remedy=f"a user for each machine, {_GUIDE}")
    else:
        yield Check(name="password", state="ok", found=f"user {user}")


def _orders(settings: Settings, *, remote: bool) -> Iterator[Check]:
    """Whether they are signed; on one machine there is nobody between control and its host."""
    from mikrom_reconcile.dispatch.transport.signing import Signer, Verifier

    for path, key in ((settings.signing_key, Signer), (settings.verify_key, Verifier)):
        if path is not None:
            try:
                key(path)
                yield Check(name="orders", state="ok", found=f"{path} is a good {key.__name__.lower()}'s key")
            except MikromError as error:
                yield Check(name="orders", state="broken", found=str(error), remedy=_GUIDE)
    if not remote:
        return
    if settings.signing_key and settings.verify_key:
        found = "both keys are here: who breaks into a host could sign orders for all"
        yield Check(name="orders", state="note", found=found, remedy="MIKROM_SIGNING_KEY only where control runs alone")
    elif not settings.signing_key and not settings.verify_key:
        found = "unsigned: who can write to a host's queue commands the host"
        remedy = f"MIKROM_SIGNING_KEY for control, MIKROM_VERIFY_KEY for hosts, {_GUIDE}"
        yield Check(name="orders", state="note", found=found, remedy=remedy)


def _flower(settings: Settings) -> Check:
    if not settings.flower_basic_auth:
        return Check(name="flower", state="ok", found="no FLOWER_BASIC_AUTH: it does not start here")
    for pair in settings.flower_basic_auth.split(","):
        user, _, password = pair.partition(":")
        known = any(word in password.lower() for word in (user.lower(), "password", "secret", "change"))
        if known or len(password) < DOCTOR.password_characters or len(set(password)) < DOCTOR.password_characters / 2:
            found = f"the password of {user or 'nobody'} in FLOWER_BASIC_AUTH can be guessed"
            remedy = f"at least {DOCTOR.password_characters} characters that nobody chose: openssl rand -hex 16"
            return Check(name="flower", state="broken", found=found, remedy=remedy)
    return Check(name="flower", state="ok", found="FLOWER_BASIC_AUTH has no password that is easily guessed")


def _is_open_to_others(port: int) -> bool:
    """Whether anything listens on `port` of an address that is not loopback."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == _LISTENS and int(number, 16) == port and not _LOOPBACK.fullmatch(address):
                return True
    return False

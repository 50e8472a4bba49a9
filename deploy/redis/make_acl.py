"""Writes the users of a fleet's Redis: `python make_acl.py FOLDER BROKER HOST...`, again whenever a host comes or goes.

    FOLDER/users.acl             for Redis (`aclfile`): SHA-256 digests of the passwords, no password
    FOLDER/<user>.env            MIKROM_BROKER_URL with the user's password: goes to that machine, 0600, to no other

BROKER is the URL without a user: rediss://redis.example.net:6380/0?ssl_ca_certs=/etc/mikrom/ca.pem. A user whose
.env is there keeps its password. The queue is that of CELERY_QUEUE_NAME.
"""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

from mikrom_reconcile import settings
from mikrom_reconcile.dispatch.transport.acl import acl_lines, acl_rules
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.system.files import write_whole
from mikrom_reconcile.system.folders import make_folder

_VARIABLE = "MIKROM_BROKER_URL="


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


if __name__ == "__main__":
    if len(sys.argv) < 4 or "://" not in sys.argv[2]:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2], [settings.host_name(host) for host in sys.argv[3:]])
    except ValueError as error:
        sys.exit(f"make_acl.py: {error}")

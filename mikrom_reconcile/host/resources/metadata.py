"""What a guest can read of itself: what its spec says under `mmds`, with secrets in place, and who and where it is.

Secrets are resolved from references, here and now: `file://` below folders and `env://` from names that this host
allows. One is never kept, reported or logged: what goes wrong names the reference alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.specs.validate_vms import METADATA_OF_HOST, SECRET_REF
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.resources.networks import mac_of
from mikrom_reconcile.system.download import FetchError, local_file
from mikrom_reconcile.times_and_sizes import IMAGES


class SecretError(MikromError):
    """A reference cannot be resolved on this host."""


class Secrets:
    """What this host may read. `folders` are those that `file://` may name, `names` the variables of `env://`."""

    def __init__(
        self, folders: tuple[Path, ...] = (), names: tuple[str, ...] = (), environ: Mapping[str, str] = os.environ
    ) -> None:
        self._folders = folders or (Path("/etc/mikrom/secrets"),)
        self._names = names
        self._environ = environ

    def resolved(self, value: Any) -> Any:
        """`value` with each reference in it replaced by its secret. Raises SecretError."""
        if isinstance(value, dict):
            if value.keys() == {SECRET_REF}:
                return self._secret(str(value[SECRET_REF]))
            return {key: self.resolved(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.resolved(item) for item in value]
        return value

    def _secret(self, reference: str) -> str:
        parts = urlsplit(reference)
        if parts.scheme == "file":
            return self._of_file(reference, unquote(parts.path))
        if parts.scheme != "env":
            raise SecretError(f"{reference} is no secret's reference: begin with file:/// or env://")
        name = parts.netloc
        if name not in self._names:
            raise SecretError(f"{reference}: MIKROM_SECRET_ENV of this host does not name {name}")
        if name not in self._environ:
            raise SecretError(f"{reference}: this host's worker has no variable {name}")
        return self._environ[name]

    def _of_file(self, reference: str, path: str) -> str:
        try:
            with local_file(path, self._folders, "MIKROM_SECRET_DIRS") as content:
                text = content.read(IMAGES.secret_bytes + 1).decode()
        except (FetchError, OSError) as error:
            raise SecretError(str(error)) from error
        except UnicodeDecodeError as error:
            raise SecretError(f"{reference} is not UTF-8 text") from error
        if len(text) > IMAGES.secret_bytes:
            raise SecretError(f"{reference} has more than {IMAGES.secret_bytes >> 10} KiB")
        return text.removesuffix("\n")


def metadata_of(record: VMRecord, secrets: Secrets) -> dict[str, Any] | None:
    """The metadata of a VM, None if it has none. Raises SecretError."""
    if record.spec.mmds is None:
        return None
    interfaces = {
        name: {"ip": record.addresses.get(name), "mac": mac_of(record, name), "cidr": nic.cidr, "gateway": nic.gateway}
        for name, nic in sorted(record.spec.network_interfaces.items())
    }
    own = {"name": record.vm, "fleet": record.fleet, "project": record.project, "network_interfaces": interfaces}
    said: dict[str, Any] = secrets.resolved(record.spec.mmds)
    return {METADATA_OF_HOST: own} | said

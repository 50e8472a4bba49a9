"""Whose signature a commit has to carry: SSH keys of an allowed_signers file, GPG keys of a keyring of their own."""

import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.encoding import digest_of
from mikrom_reconcile.system.files import OddFileError, read_small
from mikrom_reconcile.times_and_sizes import SPECS

_KEYRINGS = ("pubring.kbx", "pubring.gpg", "public-keys.d/pubring.db")  # as releases of GnuPG call it


class Signers(msgspec.Struct, frozen=True, kw_only=True):
    """Whom MIKROM_GIT_ALLOWED_SIGNERS and MIKROM_GIT_GNUPGHOME name; a kind of key that neither names signs nothing."""

    ssh: Path | None
    gpg: Path | None

    def identity(self) -> str:
        """A digest of their keys as they are now; "" where nobody has to sign."""
        keys = []
        for path in (self.ssh, *(self.gpg / name for name in _KEYRINGS if self.gpg)):
            with suppress(OSError, OddFileError):  # git says so, too, and verifies nothing with it
                keys.append(((path and read_small(path, max_bytes=SPECS.keys_bytes)) or b"").hex())
        return digest_of(keys) if self.ssh or self.gpg else ""

    def options(self) -> list[str]:
        """What tells git whom to believe, whatever its other configuration says."""
        told = {
            "gpg.ssh.allowedSignersFile": str(self.ssh or "/dev/null"),
            "gpg.ssh.program": shutil.which("ssh-keygen") or "false",
            "gpg.program": (shutil.which("gpg") if self.gpg else None) or "false",
            "gpg.x509.program": "false",
            "gpg.minTrustLevel": "undefined",  # who is in the keyring is believed
        }
        return [word for name, value in told.items() for word in ("-c", f"{name}={value}")]

    def environment(self) -> dict[str, str]:
        """What keeps git and gpg from any other configuration and keys."""
        return {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GNUPGHOME": str(self.gpg or "/gone")}


NOBODY = Signers(ssh=None, gpg=None)

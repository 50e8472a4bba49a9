"""Orders that only control can have made: Ed25519 signatures. Importing this takes 30 ms, which only keys are worth."""

import os
import stat
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.system.files import descriptor, write_whole
from mikrom_reconcile.times_and_sizes import BROKER

_CONTEXT = "mikrom order 1"
"""What is signed here can be taken for nothing else, and another form of it not for this one."""

_PAIR = "make a pair as docs/security.md says"
_NO_KEY = (ValueError, TypeError, UnsupportedAlgorithm)


class Signer:
    """The control side's private key."""

    def __init__(self, path: Path) -> None:
        pem = _read("MIKROM_SIGNING_KEY", path, closed=0o077, remedy="only its owner may read it: chmod 600")
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except _NO_KEY as error:
            raise SetupError(f"MIKROM_SIGNING_KEY={path} is no private key without a passphrase; {_PAIR}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SetupError(f"MIKROM_SIGNING_KEY={path} is no Ed25519 key; {_PAIR}")
        self._key = key

    def sign(self, order: str, *, queue: str, start_id: str, call: str) -> str:
        """The signature of `order` for the worker that started as `start_id` and consumes `queue`."""
        return self._key.sign(_signed(queue, start_id, call, order)).hex()


class Verifier:
    """The public key by which a host knows the control side."""

    def __init__(self, path: Path) -> None:
        pem = _read("MIKROM_VERIFY_KEY", path, closed=0o022, remedy="only its owner may write it: chmod 644")
        try:
            key = serialization.load_pem_public_key(pem)
        except _NO_KEY as error:
            raise SetupError(f"MIKROM_VERIFY_KEY={path} is no public key; {_PAIR}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SetupError(f"MIKROM_VERIFY_KEY={path} is no Ed25519 key; {_PAIR}")
        self._key = key

    def is_genuine(self, order: str, signature: str, *, queue: str, start_id: str, call: str) -> bool:
        """Whether the control side signed exactly this, for this worker."""
        try:
            self._key.verify(bytes.fromhex(signature), _signed(queue, start_id, call, order))
        except (InvalidSignature, ValueError):
            return False
        return True


def make_pair(signing_key: Path, verify_key: Path) -> None:
    """Write a new pair of key files, both 0600."""
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    write_whole(signing_key, private, durable=False)
    write_whole(verify_key, public, durable=False)


def _signed(queue: str, start_id: str, call: str, order: str) -> bytes:
    # as JSON: no other split of the same characters gives the same bytes
    return msgspec.json.encode((_CONTEXT, queue, start_id, call, order))


def _read(variable: str, path: Path, *, closed: int, remedy: str) -> bytes:
    """The content of a key file: no symlink, and closed to others in these bits of its mode."""
    try:
        with descriptor(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise SetupError(f"{variable}={path} is not a regular file")
            if found.st_uid not in {0, os.geteuid()}:
                raise SetupError(f"{variable}={path} belongs to uid {found.st_uid}, neither to root nor to this user")
            if found.st_mode & closed:
                raise SetupError(f"{variable}={path} has mode {stat.S_IMODE(found.st_mode):04o}; {remedy} {path}")
            return os.read(fd, BROKER.key_file_bytes)
    except OSError as error:
        why = "is a symlink; name the file itself" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise SetupError(f"{variable}={path} {why}") from error

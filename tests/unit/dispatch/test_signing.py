"""Which key files are trusted, and what a signature covers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.dispatch.transport.signing import Signer, Verifier, make_pair

SENT = {"queue": "mikrom:queue.hv01", "start_id": "812-a", "call": "execute-1"}
"""What else is signed with an order."""


@pytest.fixture
def pair(own_environment: Path) -> tuple[Path, Path]:
    """As docs/security.md has it made."""
    private, public = own_environment / "signing.pem", own_environment / "verify.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


def test_what_openssl_made_signs_and_proves_an_order(pair: tuple[Path, Path]) -> None:
    signature = Signer(pair[0]).sign("stop web-1", **SENT)
    assert Verifier(pair[1]).is_genuine("stop web-1", signature, **SENT)


def test_our_own_pair_is_closed_to_others(own_environment: Path) -> None:
    private, public = own_environment / "s.pem", own_environment / "v.pem"
    make_pair(private, public)
    assert [path.stat().st_mode & 0o777 for path in (private, public)] == [0o600, 0o600]
    assert Verifier(public).is_genuine("an order", Signer(private).sign("an order", **SENT), **SENT)


@pytest.mark.parametrize(
    ("part", "value"),
    [("order", "stop web-2"), ("queue", "mikrom:queue.hv02"), ("start_id", "812-b"), ("call", "execute-2")],
)
def test_a_signature_is_worth_nothing_for_anything_else(pair: tuple[Path, Path], part: str, value: str) -> None:
    signature = Signer(pair[0]).sign("stop web-1", **SENT)
    arguments = {"order": "stop web-1", **SENT, part: value}
    assert not Verifier(pair[1]).is_genuine(signature=signature, **arguments)


@pytest.mark.parametrize("signature", ["", "no hex", "00", "ä" * 64, "00" * 64])
def test_what_is_no_signature_proves_nothing(pair: tuple[Path, Path], signature: str) -> None:
    assert not Verifier(pair[1]).is_genuine("stop web-1", signature, **SENT)


def test_the_key_of_somebody_else_proves_nothing(pair: tuple[Path, Path], own_environment: Path) -> None:
    other = own_environment / "other.pem"
    make_pair(other, own_environment / "other.pub")
    assert not Verifier(pair[1]).is_genuine("stop web-1", Signer(other).sign("stop web-1", **SENT), **SENT)


def test_a_private_key_that_others_can_read_is_refused(pair: tuple[Path, Path]) -> None:
    pair[0].chmod(0o640)
    with pytest.raises(SetupError, match="has mode 0640; only its owner may read it: chmod 600 "):
        Signer(pair[0])


def test_a_public_key_may_be_read_by_all_and_written_by_nobody_else(pair: tuple[Path, Path]) -> None:
    pair[1].chmod(0o644)
    Verifier(pair[1])
    pair[1].chmod(0o664)
    with pytest.raises(SetupError, match="has mode 0664; only its owner may write it: chmod 644 "):
        Verifier(pair[1])


def test_what_is_no_file_of_its_own_is_refused(pair: tuple[Path, Path], own_environment: Path) -> None:
    link = own_environment / "link.pem"
    link.symlink_to(pair[0])
    with pytest.raises(SetupError, match="is a symlink; name the file itself"):
        Signer(link)
    with pytest.raises(SetupError, match="is not a regular file"):
        Verifier(own_environment)
    with pytest.raises(SetupError, match=r"MIKROM_VERIFY_KEY=.*/none.pem cannot be read: No such file"):
        Verifier(own_environment / "none.pem")


def test_what_is_no_such_key_is_refused(pair: tuple[Path, Path], own_environment: Path) -> None:
    other = own_environment / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "x25519", "-out", other], check=True)
    with pytest.raises(SetupError, match="is no Ed25519 key"):
        Signer(other)
    with pytest.raises(SetupError, match="is no private key"):
        Signer(_closed(pair[1]))
    with pytest.raises(SetupError, match="is no public key"):
        Verifier(pair[0])
    with pytest.raises(SetupError, match="is no private key without a passphrase"):
        Signer(_locked(pair[0]))


def _closed(path: Path) -> Path:
    path.chmod(0o600)
    return path


def _locked(path: Path) -> Path:
    locked = path.with_name("locked.pem")
    argv = ["openssl", "pkey", "-in", str(path), "-out", str(locked), "-aes256", "-passout", "pass:sesame"]
    subprocess.run(argv, check=True)
    return _closed(locked)

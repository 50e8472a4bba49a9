"""Secrets by reference: from where this host allows it, and nowhere else; what goes wrong tells no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from mikrom_reconcile.core.model.errors import PermanentError
from mikrom_reconcile.host.resources.provisioner import Secrets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "password").write_text("hunter2\n")
    return allowed


@pytest.fixture
def secrets(folder: Path) -> Secrets:
    return Secrets((folder,), ("TOKEN", "GONE"), {"TOKEN": "t0ken", "OTHER": "no"})


def test_references_are_resolved_wherever_they_stand(secrets: Secrets, folder: Path) -> None:
    said = {"db": {"password": {"secret_ref": f"file://{folder}/password"}}, "list": [{"secret_ref": "env://TOKEN"}, 1]}
    assert secrets.resolved(said) == {"db": {"password": "hunter2"}, "list": ["t0ken", 1]}
    assert secrets.resolved({"secret_ref": "x", "beside": 1}) == {"secret_ref": "x", "beside": 1}


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("env://OTHER", "MIKROM_SECRET_ENV of this host does not name OTHER"),
        ("env://GONE", "this host's worker has no variable GONE"),
        ("file:///etc/shadow", "MIKROM_SECRET_DIRS says where files may come from"),
        ("file://{folder}/../outside", "MIKROM_SECRET_DIRS"),
        ("file://{folder}/link", "symlink is not followed"),
        ("file://{folder}/binary", "is not UTF-8 text"),
        ("file://{folder}/large", "more than 32 KiB"),
        ("vault://x", "begin with file:/// or env://"),
    ],
)
def test_what_is_not_allowed_is_refused_by_the_reference_alone(
    secrets: Secrets, folder: Path, reference: str, why: str
) -> None:
    (folder.parent / "outside").write_text("precious")
    (folder / "link").symlink_to("password")
    (folder / "binary").write_bytes(b"\xff\xfe")
    (folder / "large").write_text("x" * 40_000)
    with pytest.raises(PermanentError, match=why) as refused:
        secrets.resolved({"secret_ref": reference.format(folder=folder)})
    assert "precious" not in str(refused.value)

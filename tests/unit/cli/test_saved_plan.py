"""What `apply PATH` makes of a file: a plan, something else, or an error that a person can act on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mikrom_reconcile.cli import run_flow
from mikrom_reconcile.core.model.errors import SourceError


@pytest.mark.parametrize("damage", [b'"\xff"}', b"[" * 5000, b'"1'])
def test_a_damaged_plan_is_an_error_and_never_a_traceback(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b'{"format_version":' + damage)
    with pytest.raises(SourceError, match="this plan is not whole"):
        run_flow.find_saved([f"{tmp_path}/plan.json"])


def test_what_no_json_reader_can_read_may_still_be_specs(tmp_path: Path) -> None:
    (tmp_path / "web.yml").write_bytes(b'{apiVersion: "\xff"}')
    assert run_flow.find_saved([f"{tmp_path}/web.yml"]) is None


def test_a_path_that_cannot_be_looked_up_is_an_error() -> None:
    with pytest.raises(SourceError, match="File name too long"):
        run_flow.find_saved(["a" * 300])

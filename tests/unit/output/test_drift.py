"""What `mikrom drift` says to people and in a pull request."""

from __future__ import annotations

from mikrom_reconcile.core.planning.drift import DriftedField, DriftedVM
from mikrom_reconcile.output.drift import DRIFT, DriftReport
from mikrom_reconcile.output.text import PLAIN
from mikrom_reconcile.times_and_sizes import OUTPUT
from tests.samples import change, plan

KILLED = DriftedVM(
    vm="web-000", fleet="web", host="hv|01", rule_id="down",
    fields=(DriftedField(path="phase", before="running", after="killed", cause="killed"),),
)  # fmt: skip


def test_each_field_is_a_row_and_what_is_pending_is_only_named() -> None:
    report = DriftReport(plan=plan(), drift=(KILLED,), pending=(change("web-001"), change("web-002")))
    assert report.exit_code == 2
    assert DRIFT["text"](report, PLAIN) == (
        "VM       HOST   FIELD  APPLIED    FOUND     CAUSE\n"
        'web-000  hv|01  phase  "running"  "killed"  killed\n'
        "1 VM drifted; pending since the specs changed: web-[001-002].\n"
    )
    told = DRIFT["markdown"](report, PLAIN)
    assert '| web-000 | hv\\|01 | phase | "running" | "killed" | killed |\n' in told


def test_hosts_that_could_not_be_read_are_named_and_no_drift_is_not_all_that_is_said() -> None:
    report = DriftReport(plan=plan(unreachable={"hv02": "no answer"}), drift=(), pending=())
    assert report.exit_code == 4
    for form in ("text", "markdown"):
        told = DRIFT[form](report, PLAIN)
        assert "No drift; not all could be read." in told
        assert "hv02: no answer" in told


def test_a_table_that_is_too_long_for_a_comment_is_cut_and_says_so() -> None:
    told = DRIFT["markdown"](DriftReport(plan=plan(), drift=(KILLED,) * 2000, pending=()), PLAIN)
    assert len(told) <= OUTPUT.markdown_characters
    assert told.endswith("_Cut here: `mikrom drift` shows all._\n")

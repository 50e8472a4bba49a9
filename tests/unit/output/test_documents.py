"""The JSON of CLI.md, held to JSON Schemas that close every object: a field more is a change of the contract too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st
from jsonschema import Draft202012Validator

from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.doctor import Check, Limit, Setting, doctor_document
from mikrom_reconcile.output.formats import json_of, validation_document
from mikrom_reconcile.output.run_result import record_of, run_document
from mikrom_reconcile.output.tables import fleets_in, status_document, vm_row
from mikrom_reconcile.output.text import PLAIN, Style
from tests.samples import MEMORY, change, observed, outcome, plan, refusal, report

SCHEMAS = json.loads((Path(__file__).parents[2] / "documents.schema.json").read_text())

PLAN = plan(
    change("web-000"),
    change("web-001", "restart", "spec changed", fields=(MEMORY,)),
    change("db-000", "blocked", "refused", fleet="db"),
    unchanged={"hv01": 2, "hv02": 3},
    refusals=(refusal("db", "too many"), refusal("web", "taken", vm="web-009", rule="name-conflict")),
    unreachable={"hv03": "gave no answer"},
    warnings=("look out",),
)
PROBLEM = SpecProblem(path="a.yml", line=1, column=2, pointer="/kind", message="m")


def checked(name: str, text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMAS["$defs"]}).validate(document)
    return document


def test_the_schemas_themselves_are_valid() -> None:
    Draft202012Validator.check_schema(SCHEMAS)


def test_a_plan_has_the_documented_shape() -> None:
    document = checked("plan", formats.PLAN["json"](PLAN, PLAIN))
    assert document["summary"]["unchanged"] == 5
    assert {kind: count for kind, count in document["summary"].items() if count} == {
        "unchanged": 5, "create": 1, "restart": 1, "blocked": 1,
    }  # fmt: skip
    assert document["taken_at"] == "2026-11-22T12:00:00Z"
    assert document["changes"][1] == {
        "vm": "web-001", "fleet": "web", "host": "localhost", "kind": "restart", "rule_id": "", "held_by": "",
        "reasons": ["spec changed"],
        "fields": [{"path": "machine.mem_size_mib", "before": 16, "after": 32, "impact": "restart"}],
    }  # fmt: skip
    assert document["refusals"][1] == {
        "fleet": "web", "vm": "web-009", "rule": "name_taken", "rule_id": "name-conflict", "message": "taken",
    }  # fmt: skip
    assert document["warnings"] == ["look out", "host hv03: gave no answer"]


def test_a_run_is_its_plan_and_what_became_of_it() -> None:
    failed = outcome("web-001", "failed_permanent", verb="restart", error="no memory")
    ended = report(PLAN, outcome("web-000"), failed, remaining=plan(change("web-001", "restart", "spec changed")))
    document = checked("run", formats.json_of(run_document(ended)))
    assert document["outcomes"] == [
        {"vm": "web-000", "host": "localhost", "verb": "create", "result": "done", "note": "", "duration_s": 0.012,
         "error": None},
        {"vm": "web-001", "host": "localhost", "verb": "restart", "result": "failed_permanent", "note": "",
         "duration_s": 0.012, "error": "no memory"},
    ]  # fmt: skip
    assert (document["converged"], document["exit_code"]) == (False, 2)
    planned = json.loads(formats.PLAN["json"](PLAN, PLAIN))
    assert {key: document[key] for key in planned} == planned


def test_vms_have_the_documented_shape() -> None:
    crashed = observed("b", pid=None, phase="crashed", last_error="it fell")
    addressed = observed("a", addresses={"eth0": "10.0.0.4", "eth1": "10.1.0.4"})
    document = checked("vms", json_of({"vms": [vm_row(addressed), vm_row(crashed)]}))
    assert document["vms"][1]["ip"] is None
    assert document["vms"][0] == {
        "name": "a", "project": "demo", "fleet": "web", "host": "localhost", "state": "running", "phase": "running",
        "uid": "01-uid", "pid": 4711, "vcpu_count": 1, "mem_size_mib": 16, "image": "hello",
        "ip": "10.0.0.4", "addresses": {"eth0": "10.0.0.4", "eth1": "10.1.0.4"}, "spec_digest": "1:d",
        "created_at": "2026-11-22T07:00:00Z", "last_error": None, "restarts": [], "unmanaged": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "document"),
    [
        (
            "status",
            status_document(
                ((), fleets_in([], {("demo", "web"): (3, "")}), record_of(report(PLAN, remaining=None)), None)
            ),
        ),
        ("status", status_document(((), (), None, None))),
        ("validation", validation_document([PROBLEM], [PROBLEM], (0, 0, 0))),
        ("validation", validation_document([], [], (3, 8, 2))),
        (
            "doctor",
            doctor_document(
                [Check(name="kvm", state="ok", found="there")],
                [Setting(variable="MIKROM_FORKS", value="32", source="default", doc="at once")],
                [Limit(group="broker", name="ping_s", value=1.5, reason="the first answer")],
            ),
        ),
    ],
)
def test_the_other_documents_keep_their_shape(name: str, document: dict[str, Any]) -> None:
    checked(name, json_of(document))


def test_colour_never_reaches_json() -> None:
    assert formats.PLAN["json"](PLAN, Style(colour=True)) == formats.PLAN["json"](PLAN, PLAIN)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_json_means_what_was_put_in_and_cannot_drive_the_terminal(texts: Sequence[str]) -> None:
    text = json_of({"texts": texts})
    assert json.loads(text)["texts"] == list(texts)
    assert all(char >= " " or char == "\n" for char in text)
    assert not set(text) & {chr(code) for code in (*range(0x7F, 0xA0), 0x202E, 0x2066, 0x200F)}

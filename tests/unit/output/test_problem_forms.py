from __future__ import annotations

import json
from xml.etree import ElementTree as ET

from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.formats import problems_github, problems_junit, problems_sarif

PROBLEM = SpecProblem(
    path="specs/ä b,c:%.yml", line=5, column=13, pointer="/spec/replicas", message='100% <wrong> "x"\x1b',
    hint="write 3", excerpt="  replicas: <&\x00",
)  # fmt: skip
OTHER = SpecProblem(path="/specs/db.yml", line=1, column=1, pointer="", message="kind is missing")


def test_github_gets_an_annotation_on_one_line_for_each() -> None:
    assert problems_github([PROBLEM, OTHER]) == (
        '::error file=specs/ä b%2Cc%3A%25.yml,line=5,col=13::100%25 <wrong> "x"\ufffd; write 3\n'
        "::error file=/specs/db.yml,line=1,col=1::kind is missing\n"
    )
    assert problems_github([]) == ""


def test_sarif_names_each_place() -> None:
    log = json.loads(problems_sarif([PROBLEM, OTHER]))
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    (run,) = log["runs"]
    assert run["tool"]["driver"]["name"] == "mikrom"
    assert run["results"][0] == {
        "ruleId": "spec",
        "level": "error",
        "message": {"text": '100% <wrong> "x"\x1b; write 3'},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": "specs/%C3%A4%20b%2Cc%3A%25.yml"},
                    "region": {"startLine": 5, "startColumn": 13},
                }
            }
        ],
    }
    place = run["results"][1]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "file:///specs/db.yml"
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {"spec"}
    assert json.loads(problems_sarif([]))["runs"][0]["results"] == []
    assert "\x1b" not in problems_sarif([PROBLEM])


def test_junit_has_a_failed_case_for_each() -> None:
    root = ET.fromstring(problems_junit([PROBLEM, OTHER]))
    assert (root.get("tests"), root.get("failures")) == ("2", "2")
    first, second = root.findall("./testsuite/testcase")
    assert first.get("name") == "specs/ä b,c:%.yml:5:13"
    failure = first.find("failure")
    assert failure is not None
    assert (failure.get("message"), failure.text) == ('100% <wrong> "x"\ufffd; write 3', "  replicas: <&\ufffd")
    assert second.get("name") == "/specs/db.yml:1:1"


def test_junit_without_a_problem_has_one_case_that_passed() -> None:
    root = ET.fromstring(problems_junit([]))
    assert (root.get("tests"), root.get("failures")) == ("1", "0")
    assert root.find(".//failure") is None


def test_every_form_tells_specs_that_are_fine() -> None:
    assert formats.validation_text([], (2, 5, 1)) == "2 documents, 5 VMs in 1 fleet: fine\n"
    assert formats.validation_document([], [], (2, 5, 1))["valid"] is True


def test_warnings_are_told_beside_specs_that_are_fine() -> None:
    text = formats.validation_text([OTHER], (2, 5, 1))
    assert text.startswith(f"/specs/db.yml:1:1: warning: {OTHER.message}")
    assert text.endswith(" fleet: fine\n")
    assert formats.validation_document([], [OTHER], (2, 5, 1))["warnings"] == [OTHER]
    assert problems_github([], [OTHER]).startswith("::warning file=/specs/db.yml,line=1")
    (result,) = json.loads(problems_sarif([], [OTHER]))["runs"][0]["results"]
    assert result["level"] == "warning"

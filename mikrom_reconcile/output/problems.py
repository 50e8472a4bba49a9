"""What is wrong with the specs: as a compiler would say it, and for GitHub's log, SARIF viewers and JUnit reports."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from mikrom_reconcile import __version__
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.output.text import Style, counted, json_text, sanitize
from mikrom_reconcile.times_and_sizes import SPECS

_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/")


def problems_text(problems: Sequence[SpecProblem], style: Style) -> str:
    """Every problem as `path:line:column: message`, its line with a caret, a hint. Ends with a line break."""
    entries = [line for problem in problems for line in _problem(problem, style)]
    return "\n".join([*entries, style.paint(f"{counted(len(problems), 'problem')} in the specs", "bold")]) + "\n"


def warnings_text(warnings: Sequence[SpecProblem]) -> str:
    """Each warning on a line of its own."""
    return "".join(
        f"{sanitize(f'{each.path}:{each.line}:{each.column}: warning: {sentence(each)}')}\n" for each in warnings
    )


def sentence(problem: SpecProblem) -> str:
    """The problem and its hint on one line, without its place."""
    return f"{problem.message}; {problem.hint}" if problem.hint else problem.message


def _problem(problem: SpecProblem, style: Style) -> list[str]:
    place = f"{sanitize(problem.path)}:{problem.line}:{problem.column}:"
    lines = [f"{style.paint(place, 'bold')} {style.paint(sanitize(problem.message), 'red')}"]
    if problem.excerpt:
        before = min(problem.column - 1, SPECS.excerpt_characters_before)
        lines += [f"    {sanitize(problem.excerpt)}", f"    {' ' * before}{style.paint('^', 'green')}"]
    if problem.hint:
        lines.append(f"    {style.paint('hint:', 'cyan')} {sanitize(problem.hint)}")
    return lines


def problems_github(problems: Sequence[SpecProblem], error: str = "", warnings: Sequence[SpecProblem] = ()) -> str:
    """Workflow commands: each becomes an annotation on its line of a pull request; an `error` has no line."""
    return (f"::error::{_data(error)}\n" if error else "") + "".join(
        f"::{level} file={_property(each.path)},line={each.line},col={each.column}::{_data(sentence(each))}\n"
        for level, found in (("error", problems), ("warning", warnings))
        for each in found
    )


def _data(text: str) -> str:
    return sanitize(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def problems_sarif(problems: Sequence[SpecProblem], error: str = "", warnings: Sequence[SpecProblem] = ()) -> str:
    """A SARIF 2.1.0 log with one run, which an `error` kept from its end."""
    notes = [{"level": "error", "message": {"text": error}}]
    driver = {"name": "mikrom", "version": __version__, "rules": [{"id": "spec"}]}
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [*(_result(each, "error") for each in problems), *(_result(each, "warning") for each in warnings)],
        **({"invocations": [{"executionSuccessful": False, "toolExecutionNotifications": notes}]} if error else {}),
    }
    log = {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json_text(log)


def _result(problem: SpecProblem, level: str) -> dict[str, Any]:
    place = {
        "artifactLocation": {"uri": _uri(problem.path)},
        "region": {"startLine": problem.line, "startColumn": problem.column},
    }
    return {
        "ruleId": "spec",
        "level": level,
        "message": {"text": sentence(problem)},
        "locations": [{"physicalLocation": place}],
    }


def _uri(path: str) -> str:
    encoded = "".join(
        char if char in _UNRESERVED else "".join(f"%{byte:02X}" for byte in char.encode()) for char in path
    )
    return f"file://{encoded}" if encoded.startswith("/") else encoded


def problems_junit(problems: Sequence[SpecProblem], error: str = "") -> str:
    """A JUnit report: a failed test case for each problem, one for an `error`, or one that passed."""
    why = f'><error message="{_xml(error)}"/></testcase>' if error else "/>"
    cases = [] if problems and not error else [f'    <testcase classname="specs" name="validate"{why}\n']
    cases += [_case(problem) for problem in problems]
    counts = f'tests="{len(cases)}" failures="{len(problems)}" errors="{int(bool(error))}" skipped="0"'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<testsuites name="mikrom validate" {counts}>\n'
        f'  <testsuite name="specs" {counts}>\n{"".join(cases)}  </testsuite>\n'
        "</testsuites>\n"
    )


def _case(problem: SpecProblem) -> str:
    place = f"{problem.path}:{problem.line}:{problem.column}"
    name, message, line = (_xml(text) for text in (place, sentence(problem), problem.excerpt))
    return (
        f'    <testcase classname="specs" name="{name}">\n'
        f'      <failure type="spec" message="{message}">{line}</failure>\n'
        "    </testcase>\n"
    )


def _xml(text: str) -> str:
    return escape(sanitize(text).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd"))

"""The forms in which each thing can be shown: the words after `-o`. A new form is a new row.

Other programs rely on the documents: a field that is in one stays, with its meaning. Each has `format_version`, which
goes up by one only when something in it changes its meaning or vanishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunReport
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.output.plan import plan_document, plan_text
from mikrom_reconcile.output.plan_html import plan_html
from mikrom_reconcile.output.plan_markdown import plan_markdown
from mikrom_reconcile.output.problems import problems_github, problems_junit, problems_sarif, warnings_text
from mikrom_reconcile.output.run_text import run_document, run_text
from mikrom_reconcile.output.text import Document, Style, counted, json_text

FORMAT_VERSION = "1"


def json_of(document: Document) -> str:
    """The document as text, indented, ending with a line break."""
    return json_text({"format_version": FORMAT_VERSION, **document})


def yaml_of(document: Document) -> str:
    """The document as YAML that means the same as its JSON, in ASCII, so that no terminal can obey it."""
    import yaml  # noqa: PLC0415 - most outputs are not YAML

    plain = msgspec.json.decode(msgspec.json.encode({"format_version": FORMAT_VERSION, **document}))
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(plain, Dumper=dumper, sort_keys=False, width=120))


DOCUMENT: Final[Mapping[str, Callable[[Document], str]]] = {"json": json_of, "yaml": yaml_of}
"""What is the same for everything that is a document."""

PLAN: Final[Mapping[str, Callable[[Plan, Style], str]]] = {
    "text": plan_text,
    "json": lambda plan, _style: json_of(plan_document(plan)),
    "yaml": lambda plan, _style: yaml_of(plan_document(plan)),
    "markdown": plan_markdown,
    "html": plan_html,
}

RUN: Final[Mapping[str, Callable[[RunReport, Style], str]]] = {
    "text": run_text,
    "json": lambda report, _style: json_of(run_document(report)),
    "yaml": lambda report, _style: yaml_of(run_document(report)),
}

Problems = Sequence[SpecProblem]
Counts = tuple[int, int, int]
"""Documents, VMs and fleets; all 0 when something is wrong."""


def validation_document(problems: Problems, warnings: Problems, counts: Counts) -> Document:
    """What is wrong with the specs, what has no effect, and how much there is."""
    named = dict(zip(("documents", "vms", "fleets"), counts, strict=True))
    return {"valid": not problems, **named, "problems": problems, "warnings": warnings}


def _validation_text(problems: Problems, warnings: Problems, counts: Counts) -> str:
    documents, vms, fleets = map(counted, counts, ("document", "VM", "fleet"))
    return "" if problems else f"{warnings_text(warnings)}{documents}, {vms} in {fleets}: fine\n"


VALIDATION: Final[Mapping[str, Callable[[Problems, Problems, Counts], str]]] = {
    "text": _validation_text,
    "json": lambda problems, warnings, counts: json_of(validation_document(problems, warnings, counts)),
    "github": lambda problems, warnings, _counts: problems_github(problems, warnings=warnings),
    "sarif": lambda problems, warnings, _counts: problems_sarif(problems, warnings=warnings),
    "junit": lambda problems, _warnings, _counts: problems_junit(problems),
}


def _error_document(message: str, code: int, problems: Problems) -> Document:
    return {"error": message, "exit_code": code, "problems": problems}


ERROR: Final[Mapping[str, Callable[[str, int, Problems], str]]] = {
    "json": lambda *error: json_of(_error_document(*error)),
    "yaml": lambda *error: yaml_of(_error_document(*error)),
    "github": lambda message, _code, problems: problems_github(problems, message),
    "sarif": lambda message, _code, problems: problems_sarif(problems, message),
    "junit": lambda message, _code, problems: problems_junit(problems, message),
}
"""An error instead of a result, in the forms that programs read."""

"""The forms in which each thing can be shown: the words after `-o`. A new form is a new row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunReport
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.output.documents import (
    Document,
    error_document,
    json_of,
    plan_document,
    run_document,
    validation_document,
    yaml_of,
)
from mikrom_reconcile.output.plan_html import plan_html
from mikrom_reconcile.output.plan_markdown import plan_markdown
from mikrom_reconcile.output.plan_text import plan_text
from mikrom_reconcile.output.problem_forms import problems_github, problems_junit, problems_sarif
from mikrom_reconcile.output.problem_text import warnings_text
from mikrom_reconcile.output.run_text import run_text
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.units import counted

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

Counts = tuple[int, int, int]
"""Documents, VMs and fleets; all 0 when something is wrong."""

Problems = Sequence[SpecProblem]

VALIDATION: Final[Mapping[str, Callable[[Problems, Problems, Counts], str]]] = {
    "text": lambda problems, warnings, counts: "" if problems else warnings_text(warnings) + _fine(*counts),
    "json": lambda problems, warnings, counts: json_of(validation_document(problems, warnings, *counts)),
    "github": lambda problems, warnings, _counts: problems_github(problems, warnings=warnings),
    "sarif": lambda problems, warnings, _counts: problems_sarif(problems, warnings=warnings),
    "junit": lambda problems, _warnings, _counts: problems_junit(problems),
}
"""Of what is wrong, what has no effect, and how much there is."""

ERROR: Final[Mapping[str, Callable[[str, int, Sequence[SpecProblem]], str]]] = {
    "json": lambda message, code, problems: json_of(error_document(message, code, problems)),
    "yaml": lambda message, code, problems: yaml_of(error_document(message, code, problems)),
    "github": lambda message, _code, problems: problems_github(problems, message),
    "sarif": lambda message, _code, problems: problems_sarif(problems, message),
    "junit": lambda message, _code, problems: problems_junit(problems, message),
}
"""What a command says that came to nothing, to whoever asked for a form that programs read."""


def _fine(documents: int, vms: int, fleets: int) -> str:
    return f"{counted(documents, 'document')}, {counted(vms, 'VM')} in {counted(fleets, 'fleet')}: fine\n"

"""What is wrong with the specs, as a compiler would say it."""

from __future__ import annotations

from collections.abc import Sequence

from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.limits import SPECS
from mikrom_reconcile.output.sanitize import one_line
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.units import counted


def problems_text(problems: Sequence[SpecProblem], style: Style) -> str:
    """Every problem as `path:line:column: message`, its line with a caret, a hint. Ends with a line break."""
    entries = [line for problem in problems for line in _problem(problem, style)]
    return "\n".join([*entries, style.paint(f"{counted(len(problems), 'problem')} in the specs", "bold")]) + "\n"


def warnings_text(warnings: Sequence[SpecProblem]) -> str:
    """Each warning on a line of its own."""
    return "".join(
        f"{one_line(f'{each.path}:{each.line}:{each.column}: warning: {sentence(each)}')}\n" for each in warnings
    )


def sentence(problem: SpecProblem) -> str:
    """The problem and its hint on one line, without its place."""
    return f"{problem.message}; {problem.hint}" if problem.hint else problem.message


def _problem(problem: SpecProblem, style: Style) -> list[str]:
    place = f"{one_line(problem.path)}:{problem.line}:{problem.column}:"
    lines = [f"{style.paint(place, 'bold')} {style.paint(one_line(problem.message), 'red')}"]
    if problem.excerpt:
        before = min(problem.column - 1, SPECS.excerpt_characters_before)
        lines += [f"    {one_line(problem.excerpt)}", f"    {' ' * before}{style.paint('^', 'green')}"]
    if problem.hint:
        lines.append(f"    {style.paint('hint:', 'cyan')} {one_line(problem.hint)}")
    return lines

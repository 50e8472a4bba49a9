"""A plan as a person reads it: what happens to which VMs and why, what was refused, and one line that sums it up."""

from __future__ import annotations

from collections.abc import Iterator

from mikrom_reconcile.core.model.plan import FieldChange, Plan
from mikrom_reconcile.output.plan_parts import LOOKS, Group, alarms, fleets_of, short, summary, value_diff
from mikrom_reconcile.output.sanitize import one_line
from mikrom_reconcile.output.section import section
from mikrom_reconcile.output.style import Style

_INDENT = " " * 15
_SIGNS = {"-": "red", "+": "green"}


def plan_text(plan: Plan, style: Style) -> str:
    """The whole plan. Ends with a line break."""
    project, revision = one_line(plan.project), one_line(plan.revision)
    lines = [style.paint(f"Project {project} at {revision}" if revision else f"Project {project}", "bold")]
    for fleet, peak, groups in fleets_of(plan):
        lines += ["", f"  {style.paint(one_line(fleet), 'bold')}{style.paint(f'  {peak}' if peak else '', 'dim')}"]
        for group in groups:
            lines += _entry(group, style)
    for title, look, told in alarms(plan):
        lines += section(title, told, style, look)
    lines += ["", style.paint(summary(plan), "bold")]
    return "\n".join(lines) + "\n"


def _entry(group: Group, style: Style) -> Iterator[str]:
    sign = LOOKS[group.kind][0]
    look = LOOKS[group.wanted if group.kind == "wait" and group.wanted else group.kind][1]  # what waits is to come
    what = style.paint(f"{sign} {group.kind:<8}", look)
    wanted = f" ({group.wanted})" if group.wanted else ""
    why = f": {style.paint(one_line(group.why), 'dim')}" if group.why else ""
    yield f"    {what} {one_line(group.names)} on {one_line(group.hosts)}{wanted}{why}"
    if group.placed:
        yield f"{_INDENT}{style.paint(one_line(group.placed), 'dim')}"
    for field in group.fields:
        for line in _field(field, style):
            yield f"{_INDENT}{line}"


def _field(field: FieldChange, style: Style) -> Iterator[str]:
    impact = style.paint(f"({field.impact})", "dim")
    if not style.full:
        before, after = (one_line(short(value)) for value in (field.before, field.after))
        yield f"{one_line(field.path)}: {style.paint(before, 'red')} → {style.paint(after, 'green')} {impact}"
        return
    yield f"{one_line(field.path)} {impact}"
    for line in value_diff(field):
        yield f"  {style.paint(one_line(line), _SIGNS.get(line[0], 'dim'))}"

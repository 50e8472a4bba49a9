"""A plan as a person reads it: what happens to which VMs and why, what was refused, and one line that sums it up."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from mikrom_reconcile.core.model.plan import ChangeKind, FieldChange, Plan, VMChange
from mikrom_reconcile.output.names import grouped
from mikrom_reconcile.output.neutral import one_line
from mikrom_reconcile.output.section import section
from mikrom_reconcile.output.style import Style
from mikrom_reconcile.output.units import counted, listed

KINDS: tuple[ChangeKind, ...] = get_args(ChangeKind)
"""Every kind of change, in the order in which they are shown."""

LOOKS: dict[ChangeKind, tuple[str, str]] = {
    "create": ("+", "green"),
    "start": ("+", "green"),
    "stop": ("-", "yellow"),
    "pause": ("~", "yellow"),
    "resume": ("~", "green"),
    "update": ("~", "cyan"),
    "restart": ("~", "yellow"),
    "replace": ("±", "red"),
    "move": ("±", "red"),
    "delete": ("-", "red"),
    "wait": ("·", "dim"),
    "blocked": ("!", "magenta"),
}
"""The sign and the colour of each kind."""

_SUMMARY = {kind: f"to {kind}" for kind in KINDS} | {"wait": "waiting", "blocked": "blocked"}


def plan_text(plan: Plan, style: Style) -> str:
    """The whole plan. Ends with a line break."""
    project, revision = one_line(plan.project), one_line(plan.revision)
    lines = [style.paint(f"Project {project} at {revision}", "bold")]
    fleets: dict[str, list[VMChange]] = defaultdict(list)
    for change in plan.changes:
        fleets[change.fleet].append(change)
    for fleet in sorted(fleets):
        lines += ["", style.paint(f"  {one_line(fleet)}", "bold"), *_fleet(fleets[fleet], style)]
    lines += section("Refused", refusals(plan), style, "magenta")
    lines += section("Could not be read", unreachable(plan), style, "red")
    lines += section("Warnings", plan.warnings, style, "yellow")
    lines += ["", style.paint(summary(plan), "bold")]
    return "\n".join(lines) + "\n"


def summary(plan: Plan) -> str:
    """The plan in one line."""
    unchanged = sum(plan.unchanged.values())
    kinds = Counter(change.kind for change in plan.changes)
    dark = f"; {counted(len(plan.unreachable), 'host')} could not be read" if plan.unreachable else ""
    if not kinds:
        return f"Nothing to change: {counted(unchanged, 'VM')} as specified{dark}."
    return f"Plan: {listed({_SUMMARY[kind]: kinds[kind] for kind in KINDS})}; {unchanged} unchanged{dark}."


def _fleet(changes: Iterable[VMChange], style: Style) -> Iterator[str]:
    """One entry for all VMs to which the same happens for the same reasons."""
    groups: dict[tuple[Any, ...], list[VMChange]] = {}
    for change in changes:
        fields = tuple((field.path, _value(field.before), _value(field.after), field.impact) for field in change.fields)
        groups.setdefault((KINDS.index(change.kind), change.wanted, change.reasons, fields), []).append(change)
    entries = sorted(groups.values(), key=lambda group: (KINDS.index(group[0].kind), group[0].name))
    for group in entries:
        yield from _entry(group, style)


def _entry(group: list[VMChange], style: Style) -> Iterator[str]:
    first = group[0]
    sign, look = LOOKS[first.kind]
    what = style.paint(f"{sign} {first.kind:<8}", look)
    wanted = f" ({first.wanted})" if first.wanted else ""
    where = grouped(one_line(change.host) for change in group)
    why = one_line("; ".join(first.reasons))
    names = grouped(one_line(change.name) for change in group)
    yield f"    {what} {names} on {where}{wanted}{': ' if why else ''}{style.paint(why, 'dim')}"
    for field in first.fields:
        yield f"               {_field(field, style)}"


def _field(field: FieldChange, style: Style) -> str:
    before, after = style.paint(_value(field.before), "red"), style.paint(_value(field.after), "green")
    return f"{one_line(field.path)}: {before} → {after} {style.paint(f'({field.impact})', 'dim')}"


def _value(value: Any) -> str:
    return "(none)" if value is None else one_line(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))


def refusals(plan: Plan) -> Iterator[str]:
    """Each refusal in one line, once for all the VMs that it stands for; not yet made neutral."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for refusal in plan.refusals:
        groups.setdefault((refusal.fleet, refusal.rule, refusal.message), []).append(refusal.vm)
    for (fleet, rule, message), vms in groups.items():
        named = grouped(vm for vm in vms if vm)
        yield f"{named or f'fleet {fleet}'}: {message} [{rule}]"


def unreachable(plan: Plan) -> Iterator[str]:
    """The hosts that gave no report, in one line for each reason; not yet made neutral."""
    reasons: dict[str, list[str]] = {}
    for host, reason in plan.unreachable.items():
        reasons.setdefault(reason, []).append(host)
    return (f"{grouped(hosts)}: {reason}; its VMs are left as they are" for reason, hosts in reasons.items())

"""What every form of a plan shows, as words that are not sanitized yet, and its text and its JSON."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Any, get_args

import msgspec

from mikrom_reconcile.core.model.plan import ChangeKind, FieldChange, Peak, Plan, VMChange, group_by
from mikrom_reconcile.output.text import Document, Style, counted, grouped, listed, pick, sanitize, section
from mikrom_reconcile.times_and_sizes import OUTPUT

KINDS: tuple[ChangeKind, ...] = get_args(ChangeKind)  # every kind of change, in the order in which they are counted
DANGEROUS: tuple[ChangeKind, ...] = ("delete", "replace", "move", "restart", "stop", "suspend")
"""What takes VMs or their data away, if only for a while: it is shown before all else."""

_SHOWN = (*DANGEROUS, *(kind for kind in KINDS if kind not in DANGEROUS))

LOOKS: dict[ChangeKind, tuple[str, str]] = {
    "create": ("+", "green"), "start": ("+", "green"), "stop": ("-", "yellow"),
    "pause": ("~", "yellow"), "suspend": ("-", "yellow"), "resume": ("~", "green"), "update": ("~", "cyan"),
    "restart": ("~", "yellow"), "replace": ("±", "red"), "move": ("±", "red"),
    "rename": ("~", "cyan"), "import": ("+", "cyan"), "forget": ("-", "cyan"),
    "delete": ("-", "red"), "wait": ("·", "dim"), "blocked": ("!", "magenta"),
}  # fmt: skip
"""The sign and the colour of each kind."""

FORMER_RULES = {
    "unreachable-host": "on_a_dark_host", "host-removed": "left_the_inventory", "duplicate": "runs_twice",
    "destroy": "destroyed", "not-in-specs": "not_wanted", "absent": "wanted_absent", "name-conflict": "name_taken",
    "possible-duplicate": "may_hide", "unplaceable": "homeless", "interrupted-delete": "half_deleted",
    "shrinking-drive": "shrinking", "stopped": "wanted_stopped", "crash-loop": "parked",
    "needs-replace": "replacing", "not-restarted": "left_down", "unresponsive": "broken",
    "needs-restart": "restarting", "drift": "drifted", "pause-or-resume": "paused_or_not",
    "needs-update": "updating", "unhealthy": "unwell", "up-to-date": "as_wanted", "cannot-move": "cannot_leave",
    "protection": "prevent_destroy",
}  # fmt: skip
"""What rules were called before: `rule` says so for one release more, beside `rule_id`. Others kept their names."""

NO_HOST = "no host"  # where a VM is that no host can have
_INDENT = " " * 15
_SIGNS = {"-": "red", "+": "green"}
_SUMMARY = {kind: f"to {kind}" for kind in KINDS} | {"wait": "waiting", "blocked": "blocked"}


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """VMs of one fleet to which the same happens for the same reasons. `wanted` is what they wait for."""

    kind: ChangeKind
    wanted: ChangeKind | None
    names: str
    hosts: str
    why: str
    fields: tuple[FieldChange, ...]
    names_by_host: dict[str, str]
    size: int


def kinds_of(plan: Plan) -> dict[str, int]:
    """How many VMs are unchanged, and how many there are of each kind of change."""
    kinds = Counter(change.kind for change in plan.changes)
    return {"unchanged": sum(plan.unchanged.values())} | {kind: kinds[kind] for kind in KINDS}


def summary(plan: Plan) -> str:
    """The plan in one line."""
    kinds = kinds_of(plan)
    unread = f"; {counted(len(plan.unreachable), 'host')} could not be read" if plan.unreachable else ""
    if plan.changes:
        changes = listed({_SUMMARY[kind]: kinds[kind] for kind in KINDS})
        return f"Plan: {changes}; {kinds['unchanged']} unchanged{unread}."
    if plan.selected == 0:
        return f"Nothing to change: no VM was selected{unread}."
    what = counted(kinds["unchanged"], "VM") if plan.selected is None else "all that was selected is"
    return f"Nothing to change: {what} as {asked_of(plan)}{unread}."


def asked_of(plan: Plan) -> str:
    """What the VMs are to be like: a plan without a revision comes from no specs."""
    return "specified" if plan.revision else "asked for"


def fleets_of(plan: Plan) -> Iterator[tuple[str, str, list[Group]]]:
    """Each fleet with changes, what takes away first: its name, how its VMs are taken down or "", its groups."""
    fleets = group_by(plan.changes, lambda change: change.fleet)
    dangerous = {change.fleet for change in plan.changes if change.kind in DANGEROUS}
    for fleet in sorted(fleets, key=lambda name: (name not in dangerous, name)):
        peak = plan.peaks.get(fleet)
        yield fleet, _pace(peak) if peak else "", list(_groups(fleets[fleet]))


def _pace(peak: Peak) -> str:
    """How many VMs are taken down at a time, or in which batches: equal ones in a row are counted."""
    if not peak.batches:
        return f"at most {peak.down} of {peak.size} down at a time"
    rows = [(size, len(list(alike))) for size, alike in groupby(peak.batches)]
    sizes = ", ".join(f"{count} x {size}" if count > 1 else str(size) for size, count in rows)
    return f"batch {peak.batch} of {len(peak.batches)} ({sizes} VMs)"


def rollout_of(plan: Plan, fleet: str) -> str:
    """Where the rollout of a fleet stands, "" if nothing is rolled out."""
    ends = (it.rule for it in plan.refusals if it.rule in {"halted", "reverted"} and it.fleet == fleet and not it.vm)
    if end := next(ends, ""):
        return end
    peak = plan.peaks.get(fleet)
    if peak is None:
        return ""
    batch = f"batch {peak.batch} of {len(peak.batches)}, " if peak.batches else ""
    return f"{batch}{peak.pending} of {peak.size} VMs to go"


def _groups(changes: Iterable[VMChange]) -> Iterator[Group]:
    def looks(change: VMChange) -> tuple[Any, ...]:
        fields = tuple((field.path, whole(field.before), whole(field.after), field.impact) for field in change.fields)
        return change.kind, change.wanted, change.reasons, fields

    alike = group_by(changes, looks)
    for entry in sorted(alike.values(), key=lambda entry: (_SHOWN.index(entry[0].kind), min(vm.name for vm in entry))):
        first = min(entry, key=lambda change: change.name)
        by_host = group_by(entry, lambda change: change.host or NO_HOST)
        yield Group(
            kind=first.kind,
            wanted=first.wanted,
            names=grouped(change.name for change in entry),
            hosts=grouped(by_host),
            why="; ".join(first.reasons),
            fields=first.fields,
            names_by_host={host: grouped(change.name for change in by_host[host]) for host in sorted(by_host)},
            size=len(entry),
        )


def refusals(plan: Plan) -> Iterator[str]:
    """Each refusal in one line, once for all the VMs that it stands for."""
    groups = group_by(plan.refusals, lambda refusal: (refusal.fleet, refusal.rule, refusal.message))
    for (fleet, rule, message), alike in groups.items():
        named = grouped(refusal.vm for refusal in alike if refusal.vm)
        yield f"{named or (f'fleet {fleet}' if fleet else 'all of it')}: {message} [{rule}]"


def unreachable(plan: Plan) -> Iterator[str]:
    """The hosts that gave no report, in one line for each reason."""
    reasons = group_by(plan.unreachable, lambda host: plan.unreachable[host])
    return (f"{grouped(hosts)}: {reason}; its VMs are left as they are" for reason, hosts in reasons.items())


def alarms(plan: Plan) -> list[tuple[str, str, list[str]]]:
    """What asks for attention: title, colour and lines of each section that has any."""
    refused, unread, warnings = list(refusals(plan)), list(unreachable(plan)), list(plan.warnings)
    every = ("Refused", "magenta", refused), ("Could not be read", "red", unread), ("Warnings", "yellow", warnings)
    return [(title, look, lines) for title, look, lines in every if lines]


def whole(value: Any, indent: int | None = None) -> str:
    """A field's value on one line, or on many with an `indent`."""
    if value is None:
        return "(none)"
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str, indent=indent)


def short(value: Any) -> str:
    """A field's value on one line of at most `OUTPUT.value_characters` characters."""
    text = whole(value)
    return text if len(text) <= OUTPUT.value_characters else text[: OUTPUT.value_characters - 1] + "…"


def value_diff(field: FieldChange) -> Iterator[str]:
    """The lines of both values with "-", "+" or " " before them, and "…" for those that are equal and far away."""
    import difflib  # noqa: PLC0415 - only a changed value that is shown in full needs it

    lines = difflib.unified_diff(_value_lines(field.before), _value_lines(field.after), lineterm="")
    shown = islice(lines, 3, None)  # without the names of the files, and where they begin to differ
    return (" …" if line.startswith("@@") else f"{line[0]} {line[1:]}" for line in shown)


def _value_lines(value: Any) -> list[str]:
    if isinstance(value, str) and "\n" in value:
        return value.split("\n")
    return [] if value is None else whole(value, indent=2).split("\n")


def plan_text(plan: Plan, style: Style) -> str:
    """The plan for a person. Ends with a line break."""
    project, revision = sanitize(plan.project), sanitize(plan.revision)
    lines = [style.paint(f"Project {project} at {revision}" if revision else f"Project {project}", "bold")]
    for fleet, peak, groups in fleets_of(plan):
        lines += ["", f"  {style.paint(sanitize(fleet), 'bold')}{style.paint(f'  {peak}' if peak else '', 'dim')}"]
        lines += [line for group in groups for line in _group_lines(group, style)]
    sections = "".join(section(title, entries, style, look) for title, look, entries in alarms(plan))
    return "\n".join([*lines, f"{sections}\n{style.paint(summary(plan), 'bold')}\n"])


def _group_lines(group: Group, style: Style) -> Iterator[str]:
    sign = LOOKS[group.kind][0]
    look = LOOKS[group.wanted if group.kind == "wait" and group.wanted else group.kind][1]  # what waits is to come
    what = style.paint(f"{sign} {group.kind:<8}", look)
    wanted = f" ({group.wanted})" if group.wanted else ""
    why = f": {style.paint(sanitize(group.why), 'dim')}" if group.why else ""
    yield f"    {what} {sanitize(group.names)} on {sanitize(group.hosts)}{wanted}{why}"
    for field in group.fields:
        path, impact = sanitize(field.path), style.paint(f"({field.impact})", "dim")
        if style.full:
            yield f"{_INDENT}{path} {impact}"
            for line in value_diff(field):
                yield f"{_INDENT}  {style.paint(sanitize(line), _SIGNS.get(line[0], 'dim'))}"
        else:
            before, after = (sanitize(short(value)) for value in (field.before, field.after))
            yield f"{_INDENT}{path}: {style.paint(before, 'red')} → {style.paint(after, 'green')} {impact}"


def plan_document(plan: Plan) -> Document:
    """A plan for programs. `changes` has all that is not unchanged, `peaks` how many VMs of a fleet are down."""
    return {
        **pick(plan, "id", "project", "revision", "taken_at"),
        "summary": kinds_of(plan),
        "changes": [change_row(change) for change in plan.changes],
        "peaks": plan.peaks,
        "refusals": [
            msgspec.to_builtins(each) | {"rule": FORMER_RULES.get(each.rule, each.rule), "rule_id": each.rule}
            for each in plan.refusals
        ],
        "warnings": [*plan.warnings, *(f"host {host}: {error}" for host, error in plan.unreachable.items())],
    }


def change_row(change: VMChange) -> Document:
    """One change."""
    known = pick(change, "fleet", "host", "kind", "reasons", "fields", "held_by")
    return {"vm": change.name, **known, "rule_id": change.rule}

"""Where values come from, and why something happens to a VM or nothing, as the planner has decided it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.observed import HostView, ObservedVM
from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.placement.desired_state import render
from mikrom_reconcile.core.planning.planner import effective
from mikrom_reconcile.core.planning.rules import RULES, DiffInput, first_match, recorded_of
from mikrom_reconcile.core.specs.load import Specs, expand, hosts_of
from mikrom_reconcile.core.specs.resolve import FieldOrigin, Provenance, leaves
from mikrom_reconcile.output.plan import FORMER_RULES, NO_HOST, change_row, short
from mikrom_reconcile.output.tables import vm_row
from mikrom_reconcile.output.text import Cell, Document, Style, counted, pick, sanitize, table, time_text


def rendered_text(vms: Iterable[DesiredVM], origins: Mapping[str, Sequence[FieldOrigin]], style: Style) -> str:
    """The fields of each VM, and where they come from where that is known. Ends with a line break."""
    tables = []
    for vm in vms:
        sources = {origin.path: _source(origin) for origin in origins.get(vm.name, ())}
        fields = sorted((".".join(steps), value) for steps, value in leaves(recorded_of(vm)) if steps != ("fleet",))
        rows = [(f"  {path}", (short(value), "cyan"), (sources.get(path, ""), "dim")) for path, value in fields]
        tables.append(table((f"{vm.name} on {vm.host or NO_HOST}, fleet {vm.fleet}", "", ""), rows, style))
    return "\n".join(tables) or "No VMs.\n"


def rendered_document(vms: Iterable[DesiredVM], origins: Mapping[str, Sequence[FieldOrigin]]) -> Document:
    """VMs as the specs want them, in the words of the specs; `origins` only for those that have any."""
    rows = (pick(vm, "name", "project", "host") | recorded_of(vm) | pick(vm, "spec_digest") for vm in vms)
    return {"vms": [row | ({"origins": origins[row["name"]]} if row["name"] in origins else {}) for row in rows]}


class FieldStory(msgspec.Struct, frozen=True, kw_only=True):
    """One field: what is wanted and where that comes from (None: not wanted), what was applied, what the VMM says."""

    path: str
    wanted: FieldOrigin | None
    recorded: Any = None
    actual: Any = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one VM. `place` is where its fleet stands in the specs, "" if they do not want it. `rule` is the
    id of the rule of the diff that decided and `meaning` what it says; both are "" where none does.
    """

    name: str
    project: str
    revision: str
    place: str
    wanted: DesiredVM | None
    observed: tuple[ObservedVM, ...]
    fields: tuple[FieldStory, ...]
    rule: str
    meaning: str
    change: VMChange | None
    refusals: tuple[str, ...]
    conclusion: str


def explain(name: str, specs: Specs, plan: Plan, views: Iterable[HostView], *, here: str) -> Explanation | None:
    """The story of the VM called `name`; None when neither the specs nor any host that answers has it."""
    change = next((each for each in plan.changes if name in {each.name, each.observed and each.observed.name}), None)
    names = {name, change.observed.name} if change and change.observed else {name}  # before a rename it has another
    rows = [row for view in views if view.report for row in view.report.vms if row.name in names]
    observed = tuple(sorted(rows, key=lambda row: (row.project != specs.project, -row.token)))
    own = next((row for row in observed if row.project == specs.project), None)
    unplaced = next((vm for vm in expand(specs) if vm.name == name), None)
    if unplaced is None and not observed:
        return None
    known, desired, place = Provenance(specs), None, ""
    origins: tuple[FieldOrigin, ...] = ()
    if unplaced is not None:
        hosts = hosts_of(specs, here)
        host = own.host if own and own.host in hosts else (unplaced.hosts or hosts)[0]
        desired = (change and change.desired) or render(specs, here, [(unplaced, host)])[0]
        origins, place = known.of(unplaced, desired.host), known.place(unplaced, ("metadata", "name"))
    rule = change.rule if change else _quiet_rule(desired, own)
    refused = (it for it in plan.refusals if change and it.fleet == change.fleet and it.vm in {"", name})
    return Explanation(
        name=name,
        project=specs.project,
        revision=specs.tree.revision,
        place=place,
        wanted=desired,
        observed=observed,
        fields=_field_stories(origins, own),
        rule=rule,
        meaning=str(RULES[rule].__doc__).partition("\n")[0] if rule else "",
        change=change,
        refusals=tuple(f"{it.message} [{it.rule}]" for it in refused),
        conclusion=_conclusion(specs, rule, change, desired, observed),
    )


def _field_stories(origins: tuple[FieldOrigin, ...], own: ObservedVM | None) -> tuple[FieldStory, ...]:
    wanted = {origin.path: origin for origin in origins}
    applied = {".".join(path): value for path, value in leaves(recorded_of(own) if own else {})}
    actual = applied | {item.path: item.actual for item in (own.drift if own else ())}
    paths = sorted({*applied, *wanted} - {"fleet"})
    found = ((path, wanted.get(path), applied.get(path), actual.get(path)) for path in paths)
    return tuple(FieldStory(path=path, wanted=want, recorded=was, actual=now) for path, want, was, now in found)


def _quiet_rule(desired: DesiredVM | None, own: ObservedVM | None) -> str:
    if desired is None or (own is None and desired.state != "absent"):
        return ""
    return first_match(DiffInput(desired=effective(desired, own) if own else desired, observed=own))[0]


def _conclusion(
    specs: Specs, rule: str, change: VMChange | None, desired: DesiredVM | None, observed: tuple[ObservedVM, ...]
) -> str:
    if change is not None:
        what = f"{change.kind} on {change.host}"
        if change.kind in {"wait", "blocked"}:
            what = f"{change.wanted} is held back" if change.wanted else "nothing is done"
        return f"{what}: {'; '.join(change.reasons)}"
    why = "it changed while this was looked at; ask again"
    if rule:
        not_restarted = rule == "not-restarted"
        why = "its restart policy leaves it as it ended" if not_restarted else "it is as the specs want it"
    elif desired is None and observed[0].project != specs.project:
        why = f"it belongs to project {observed[0].project}, and these specs speak for {specs.project}"
    elif desired is None and observed[0].unmanaged:
        why = "it was let go, and nobody acts on it but by its name"
    elif desired is None and not specs.whole and observed[0].fleet not in {fleet.name for fleet in specs.fleets}:
        known = "without a Project document they are not the whole truth"
        why = f"its fleet {observed[0].fleet} is not in these specs, and {known}"
    return f"nothing happens: {why}"


def explanation_text(story: Explanation, style: Style) -> str:
    """The story of one VM, from its line in the specs to what happens to it. Ends with a line break."""
    wanted = "not by these specs"
    if vm := story.wanted:
        wanted = f"{vm.state} on {vm.host or NO_HOST}, by fleet {vm.fleet} at {story.place}"
    lines = [
        ("Wanted", wanted),
        *(("Observed", _observed(row)) for row in story.observed),
        *([] if story.observed else [("Observed", "on no host that could be read")]),
        ("Rule", f"{story.rule}: {story.meaning}" if story.rule else "none looks at it"),
        *(("Refused", refusal) for refusal in story.refusals),
        ("So", story.conclusion),
    ]
    text = "".join(f"{style.paint(f'{title:<10}', 'bold')}{sanitize(line)}\n" for title, line in lines)
    head = style.paint(sanitize(f"{story.name}, project {story.project} at {story.revision}"), "bold")
    fields = table(("FIELD", "WANTED", "RECORDED", "ACTUAL", "FROM"), _stories(story), style)
    return f"{head}\n\n{text}\n{fields}"


def explanation_document(story: Explanation) -> Document:
    """Why something happens to a VM or nothing; what is null is not there."""
    wanted, rule = story.wanted, story.rule
    return pick(story, "name", "project", "revision", "fields", "refusals", "conclusion") | {
        "wanted": wanted and {"fleet": wanted.fleet, "place": story.place, "host": wanted.host, "state": wanted.state},
        "observed": [vm_row(row) for row in story.observed],
        "rule": {"name": FORMER_RULES.get(rule, rule), "id": rule, "meaning": story.meaning} if rule else None,
        "change": story.change and change_row(story.change),
    }


def _observed(row: ObservedVM) -> str:
    pid = f", pid {row.pid}" if row.pid else ""
    error = f", last error: {row.last_error}" if row.last_error else ""
    history = f"{counted(row.generation, 'change')}, last by token {row.token}"
    if row.restarts:
        history += f", {counted(len(row.restarts), 'restart')} by its host, last at {time_text(row.restarts[-1])}"
    return f"{row.phase} on {row.host}{pid}, project {row.project}, fleet {row.fleet}, {history}{error}"


def _stories(story: Explanation) -> Iterator[tuple[Cell, ...]]:
    seen = bool(story.observed)
    for field in story.fields:
        wanted = short(field.wanted.value) if field.wanted else "-"
        recorded, actual = (short(field.recorded), short(field.actual)) if seen else ("-", "-")
        yield (
            field.path,
            (wanted, "cyan"),
            (recorded, "dim" if field.wanted is None or recorded in {wanted, "-"} else "yellow"),
            (actual, "dim" if actual == recorded else "red"),
            (_source(field.wanted) if field.wanted else "", "dim"),
        )


def _source(origin: FieldOrigin) -> str:
    written = f", written {short(origin.written)}" if origin.variables else ""
    variables = "".join(f", {used.name} = {short(used.value)} from {used.origin}" for used in origin.variables)
    return f"{origin.place}{written}{variables}"

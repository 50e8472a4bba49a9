"""Where values come from, and why something happens to a VM or nothing, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.fields import recorded
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.planning.explain import Explanation, FieldStory
from mikrom_reconcile.core.specs.provenance import FieldOrigin, leaves
from mikrom_reconcile.output.plan import FORMER_RULES, NO_HOST, change_row, short
from mikrom_reconcile.output.text import Cell, Document, Style, counted, pick, sanitize, table, time_text
from mikrom_reconcile.output.vms import vm_row


def rendered_text(vms: Iterable[DesiredVM], origins: Mapping[str, Sequence[FieldOrigin]], style: Style) -> str:
    """The fields of each VM, and where they come from where that is known. Ends with a line break."""
    return "\n".join(_rendered(vm, origins.get(vm.name, ()), style) for vm in vms) or "No VMs.\n"


def _rendered(vm: DesiredVM, origins: Iterable[FieldOrigin], style: Style) -> str:
    values = recorded(fleet=vm.fleet, state=vm.state, spec=vm.spec, policy=vm.policy)
    del values["fleet"]
    sources = {origin.path: _source(origin) for origin in origins}
    rows = [
        (f"  {path}", (short(value), "cyan"), (sources.get(path, ""), "dim"))
        for path, value in sorted((".".join(steps), value) for steps, value in leaves(values))
    ]
    return table((f"{vm.name} on {vm.host or NO_HOST}, fleet {vm.fleet}", "", ""), rows, style)


def rendered_document(vms: Iterable[DesiredVM], origins: Mapping[str, Sequence[FieldOrigin]]) -> Document:
    """VMs as the specs want them, in the words of the specs; `origins` only for those that have any."""
    return {
        "vms": [
            pick(vm, "name", "project", "host")
            | recorded(fleet=vm.fleet, state=vm.state, spec=vm.spec, policy=vm.policy)
            | {"spec_digest": vm.spec_digest}
            | ({"origins": origins[vm.name]} if vm.name in origins else {})
            for vm in vms
        ]
    }


def explanation_text(story: Explanation, style: Style) -> str:
    """The story of one VM, from its line in the specs to what happens to it. Ends with a line break."""
    lines = [
        ("Wanted", _wanted(story)),
        *(("Observed", _observed(row)) for row in story.observed),
        *([] if story.observed else [("Observed", "on no host that could be read")]),
        ("Rule", f"{story.rule}: {story.meaning}" if story.rule else "none looks at it"),
        *(("Refused", refusal) for refusal in story.refusals),
        ("So", story.conclusion),
    ]
    text = "".join(f"{style.paint(f'{title:<10}', 'bold')}{sanitize(line)}\n" for title, line in lines)
    header = ("FIELD", "WANTED", "RECORDED", "ACTUAL", "FROM")
    head = style.paint(sanitize(f"{story.name}, project {story.project} at {story.revision}"), "bold")
    return f"{head}\n\n{text}\n{table(header, list(_stories(story)), style)}"


def explanation_document(story: Explanation) -> Document:
    """Why something happens to a VM or nothing; what is null is not there."""
    wanted, rule = story.wanted, story.rule
    return pick(story, "name", "project", "revision", "fields", "refusals", "conclusion") | {
        "wanted": wanted and {"fleet": wanted.fleet, "place": story.place, "host": wanted.host, "state": wanted.state},
        "observed": [vm_row(row) for row in story.observed],
        "rule": {"name": FORMER_RULES.get(rule, rule), "id": rule, "meaning": story.meaning} if rule else None,
        "change": story.change and change_row(story.change),
    }


def _wanted(story: Explanation) -> str:
    if story.wanted is None:
        return "not by these specs"
    return f"{story.wanted.state} on {story.wanted.host or NO_HOST}, by fleet {story.wanted.fleet} at {story.place}"


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
            (recorded, _look(field, recorded, wanted)),
            (actual, "dim" if actual == recorded else "red"),
            (_source(field.wanted) if field.wanted else "", "dim"),
        )


def _look(field: FieldStory, recorded: str, wanted: str) -> str:
    return "dim" if field.wanted is None or recorded in {wanted, "-"} else "yellow"


def _source(origin: FieldOrigin) -> str:
    """The layer and place of a value, and the variables that it looked up."""
    written = f", written {short(origin.written)}" if origin.variables else ""
    variables = "".join(f", {used.name} = {short(used.value)} from {used.origin}" for used in origin.variables)
    return f"{origin.place}{written}{variables}"

"""A plan as Markdown, for a comment on a pull request, and as an HTML page, for a pipeline's artifacts.

Both are opened by people who trust nothing in it: names and reasons cannot become links, mentions, or markup.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from html import escape
from string import Template

from mikrom_reconcile.core.model.plan import ChangeKind, FieldChange, Plan
from mikrom_reconcile.output.plan import DANGEROUS, LOOKS, Group, alarms, fleets_of, short, summary, value_diff
from mikrom_reconcile.output.text import Style, counted, sanitize
from mikrom_reconcile.times_and_sizes import OUTPUT

_SPECIAL = re.compile(r"[\\`*_\[\]|~]")
_TICKS = re.compile("`+")

Unit = tuple[str, int]
"""Lines that belong together, and how many changes they tell of."""


def plan_markdown(plan: Plan, style: Style) -> str:
    """The plan, cut behind its last unit that fits, with a line that says how much was cut. Ends with a line break.

    Of a plan that is cut comes first what takes VMs or their data away.
    """
    room = OUTPUT.markdown_characters - 200  # for the line that says so
    units = list(_units(plan, style, first=()))
    if sum(len(text) for text, _ in units) > room:
        units = list(_units(plan, style, first=DANGEROUS))
    kept = 0
    while kept < len(units) and len(units[kept][0]) <= room:
        room -= len(units[kept][0])
        kept += 1
    text = "".join(part for part, _ in units[:kept])
    if kept < len(units):
        hidden = counted(sum(changes for _, changes in units[kept:]), "change")
        limit = f"{OUTPUT.markdown_characters:,} characters"
        text += f"\n_Cut here to stay below {limit}, {hidden} not shown: `mikrom plan` shows all._\n"
    return text


def _units(plan: Plan, style: Style, first: tuple[ChangeKind, ...]) -> Iterator[Unit]:
    yield f"### Plan for {_md(plan.project)} at {_md(plan.revision)}\n\n**{_md(summary(plan))}**\n", 0
    yield from _tables(plan, style, first)
    for title, _, lines in alarms(plan):
        yield f"\n**{title}**\n\n", 0
        for line in lines:
            yield f"- {_md(line)}\n", 0
    yield from _tables(plan, style, LOOKS.keys() - set(first))


def _tables(plan: Plan, style: Style, kinds: Container[ChangeKind]) -> Iterator[Unit]:
    """Changes of these kinds, fleet by fleet."""
    for fleet, peak, every in fleets_of(plan):
        if not (groups := [group for group in every if group.kind in kinds]):
            continue
        yield f"\n#### {_md(fleet)}\n\n" + (f"{peak}\n\n" if peak else ""), 0
        yield "| Change | VMs | Host | Why |\n|:--|:--|:--|:--|\n", 0
        for group in groups:
            yield _row(group, style), group.size
        for group in groups if style.full else ():
            yield _diff(group), 0


def _row(group: Group, style: Style) -> str:
    sign, _ = LOOKS[group.kind]
    what = f"{_md(sign)} {group.kind}" + (f" ({group.wanted})" if group.wanted else "")
    why = [_md(group.why), *([_md(group.placed)] if group.placed else [])]
    if not style.full:
        why += [
            f"{_md(field.path)}: {_md(short(field.before))} → {_md(short(field.after))} ({field.impact})"
            for field in group.fields
        ]
    return f"| {what} | {_md(group.names)} | {_md(group.hosts)} | {'<br>'.join(why)} |\n"


def _diff(group: Group) -> str:
    """The fields of a group with their whole values, as a block that diff colours."""
    if not group.fields:
        return ""
    lines = [sanitize(group.names)]
    for field in group.fields:
        lines += [f"@@ {sanitize(field.path)} ({field.impact}) @@", *(sanitize(line) for line in value_diff(field))]
    fence = "`" * (1 + max((len(ticks) for line in lines for ticks in _TICKS.findall(line)), default=2))
    return "\n".join(["", f"{fence}diff", *lines, fence, ""])


def _md(text: str) -> str:
    """`text` that means itself wherever it stands."""
    plain = sanitize(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", plain).replace("@", "@&#8203;").replace("://", ":&#8203;//")


_CLASSES = {"-": "less", "+": "more"}


def plan_html(plan: Plan, style: Style) -> str:
    """The plan as one page that needs nothing else: no script, no font, no image. Values are always shown in full.

    Its policy forbids whatever is not its own style.
    """
    from importlib.resources import files  # noqa: PLC0415, TID251 - a constant of this package, and seldom needed

    del style
    return Template(files(__package__).joinpath("plan.html").read_text(encoding="utf-8")).substitute(
        title=f"Plan for {_h(plan.project)} at {_h(plan.revision)}",
        made=f"{plan.taken_at:%Y-%m-%d %H:%M:%S}",
        summary=_h(summary(plan)),
        body="\n".join([*_alarms(plan), *_fleets(plan)]),
        id=_h(plan.id),
    )


def _alarms(plan: Plan) -> Iterator[str]:
    for title, look, lines in alarms(plan):
        items = "".join(f"<li>{_h(line)}</li>" for line in lines)
        yield f'<section class="alarm {look}"><h2>{title}</h2><ul>{items}</ul></section>'


def _fleets(plan: Plan) -> Iterator[str]:
    fleets = list(fleets_of(plan))
    unfolded = " open" if sum(len(groups) for _, _, groups in fleets) <= OUTPUT.open_groups else ""
    for fleet, peak, groups in fleets:
        yield f"<section><h2>{_h(fleet)} <small>{_h(peak)}</small></h2>"
        for group in groups:
            inside = f"<dl>{''.join(_facts(group))}</dl>{''.join(_fields(group.fields))}"
            yield f'<details{unfolded}>{_summary(group)}<div class="inside">{inside}</div></details>'
        yield "</section>"


def _summary(group: Group) -> str:
    sign, look = LOOKS[group.kind]
    wanted = f" ({group.wanted})" if group.wanted else ""
    what = f'<b class="{look}">{sign} {group.kind}{wanted}</b> <span class="names">{_h(group.names)}</span>'
    return f'<summary>{what} <span class="dim">on {_h(group.hosts)}</span></summary>'


def _facts(group: Group) -> Iterator[str]:
    facts = [("Why", group.why), ("Placement", group.placed), ("VMs", str(group.size) if group.size > 1 else "")]
    if len(group.names_by_host) > 1:
        facts += [(f"on {host}", names) for host, names in group.names_by_host.items()]
    return (f"<dt>{_h(name)}</dt><dd>{_h(text)}</dd>" for name, text in facts if text)


def _fields(fields: Iterable[FieldChange]) -> Iterator[str]:
    for field in fields:
        yield f'<p class="field"><code>{_h(field.path)}</code> <span class="dim">({field.impact})</span></p>'
        lines = (f'<span class="{_CLASSES.get(line[0], "dim")}">{_h(line)}</span>' for line in value_diff(field))
        yield f"<pre>{''.join(lines)}</pre>"


def _h(text: str) -> str:
    return escape(sanitize(text))

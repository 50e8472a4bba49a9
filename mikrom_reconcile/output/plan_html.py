"""A plan as one HTML page that needs nothing else: no script, no font, no image, nothing fetched.

It may be opened from a pipeline's artifacts by people who trust nothing in it: every text is escaped, and a policy in
the page forbids whatever is not its own style.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from mikrom_reconcile.core.model.plan import FieldChange, Plan
from mikrom_reconcile.output.plan import (
    KINDS,
    LOOKS,
    Group,
    alarms,
    fleets_of,
    kinds_of,
    summary,
    value_diff,
)
from mikrom_reconcile.output.text import Style, sanitize
from mikrom_reconcile.times_and_sizes import OUTPUT

_STYLE = """\
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --line: #d9dee5; --text: #1c2430; --dim: #5b6675;
  --green: #116b34; --yellow: #7d5400; --red: #b3202c; --cyan: #0b6477; --magenta: #8a2a86;
  --less: #fdebec; --more: #e7f6ec }
@media (prefers-color-scheme: dark) { :root { --back: #12161c; --card: #1a2028; --line: #303947; --text: #e3e8ee;
  --dim: #9aa6b5; --green: #6fd394; --yellow: #e6b95c; --red: #ff8c92; --cyan: #6ccbe0; --magenta: #e39be0;
  --less: #3a1e23; --more: #173322 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 66rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { margin: 0; font-size: 1.4rem } h2 { margin: 2rem 0 .5rem; font-size: 1.1rem }
h2 small, header p, dd, footer { color: var(--dim); font-weight: 400 }
header p { margin: .2rem 0 }
code, pre, .names { font-family: ui-monospace, monospace; font-size: .9rem }
.tally { display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; margin: 1rem 0; list-style: none }
.tally li { padding: .15rem .7rem; border: 1px solid var(--line); border-radius: 1rem; background: var(--card) }
.alarm { margin: 1rem 0; padding: .6rem 1rem; border: 1px solid var(--line); border-left: .3rem solid;
  border-radius: .4rem; background: var(--card) }
.alarm h2 { margin: 0; font-size: 1rem; color: inherit }
.alarm ul { margin: .3rem 0; padding-left: 1.2rem; color: var(--text) }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: .4rem; background: var(--card) }
summary { padding: .5rem .8rem; cursor: pointer; border-radius: .4rem }
summary:focus-visible { outline: .2rem solid var(--cyan); outline-offset: .1rem }
summary b { display: inline-block; min-width: 6.5rem; margin-right: .5rem }
.inside { padding: 0 .8rem .6rem; border-top: 1px solid var(--line) }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .1rem 1rem; margin: .6rem 0 0 }
dt { font-weight: 600 } dd { margin: 0 }
.field { margin: .6rem 0 0 } pre { margin: .2rem 0; white-space: pre-wrap }
pre span { display: block; padding: 0 .4rem } .less { background: var(--less) } .more { background: var(--more) }
.green { color: var(--green) } .yellow { color: var(--yellow) } .red { color: var(--red) } .cyan { color: var(--cyan) }
.magenta { color: var(--magenta) } .dim { color: var(--dim) } footer { margin-top: 2.5rem; font-size: .85rem }
@media (max-width: 40rem) { dl { grid-template-columns: minmax(4rem, max-content) 1fr } summary b { min-width: 0 } }
@media print { body { max-width: none } details { break-inside: avoid } }
"""
_CLASSES = {"-": "less", "+": "more"}


def plan_html(plan: Plan, style: Style) -> str:
    """The page. Values are always shown in full."""
    del style
    title = f"Plan for {_h(plan.project)} at {_h(plan.revision)}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{title}</title>",
            f"<style>\n{_STYLE}</style></head><body>",
            f"<header><h1>{title}</h1><p>Made {plan.taken_at:%Y-%m-%d %H:%M:%S} UTC</p></header>",
            *_tally(plan),
            "<main>",
            *([] if plan.changes else [f"<p>{_h(summary(plan))}</p>"]),
            *_alarms(plan),
            *_fleets(plan),
            f"</main><footer>Plan <code>{_h(plan.id)}</code></footer></body></html>",
            "",
        ]
    )


def _tally(plan: Plan) -> Iterator[str]:
    kinds = kinds_of(plan)
    yield '<ul class="tally">'
    for kind in KINDS:
        if kinds[kind]:
            sign, look = LOOKS[kind]
            yield f'<li class="{look}">{sign} {kinds[kind]} {kind}</li>'
    yield f'<li class="dim">{kinds["unchanged"]} unchanged</li></ul>'


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
    facts = [
        ("Why", group.why),
        ("Placement", group.placed),
        ("VMs", str(group.size) if group.size > 1 else ""),
    ]
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

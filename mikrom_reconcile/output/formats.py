"""The forms in which each thing can be shown: the words after `-o`. A new form is a new row. Other programs rely on the
documents: a field stays, with its meaning, or `format_version` goes up by one.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any, Final

import msgspec

from mikrom_reconcile import __version__
from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.core.model.plan import ChangeKind, Plan
from mikrom_reconcile.output import plan as plans
from mikrom_reconcile.output.text import Document, Style, counted, json_text, sanitize
from mikrom_reconcile.times_and_sizes import OUTPUT, SPECS

_SPECIAL = re.compile(r"[\\`*_\[\]|~]")
_TICKS = re.compile("`+")

Problems = Sequence[SpecProblem]
Counts = tuple[int, int, int]  # documents, VMs and fleets; all 0 when something is wrong


def plan_markdown(plan: Plan, style: Style) -> str:
    """The plan, folded and cut behind its last unit that fits, with a line that says how much was cut. Of a plan that
    is cut comes first what takes VMs or their data away. Ends with a line break.
    """
    room = OUTPUT.markdown_characters - 400  # for the line that says so, the fold, and the mark of who posts it
    units = list(_units(plan, style, first=()))
    if sum(len(text) for text, _ in units) > room:
        units = list(_units(plan, style, first=plans.DANGEROUS))
    kept = bisect_right([*accumulate(len(text) for text, _ in units)], room)
    head, *rest = (part for part, _ in units[:kept])
    opened = " open" if sum(changes > 0 for _, changes in units) <= OUTPUT.open_groups else ""
    fold = f"\n<details{opened}><summary>{counted(len(plan.changes), 'change')}</summary>\n"
    text = head + "".join([fold, *rest, "\n</details>\n"] if rest else [])
    if kept < len(units):
        hidden = counted(sum(changes for _, changes in units[kept:]), "change")
        limit = f"{OUTPUT.markdown_characters:,} characters"
        text += f"\n_Cut here to stay below {limit}, {hidden} not shown: `mikrom plan` shows all._\n"
    return text


def _units(plan: Plan, style: Style, first: tuple[ChangeKind, ...]) -> Iterator[tuple[str, int]]:
    """Lines that belong together, and how many changes they tell of."""
    yield f"### Plan for {md(plan.project)} at {md(plan.revision)}\n\n**{md(plans.summary(plan))}**\n", 0
    yield from _tables(plan, style, first)
    for title, _, lines in plans.alarms(plan):
        yield f"\n**{title}**\n\n", 0
        for line in lines:
            yield f"- {md(line)}\n", 0
    yield from _tables(plan, style, plans.LOOKS.keys() - set(first))


def _tables(plan: Plan, style: Style, kinds: Container[ChangeKind]) -> Iterator[tuple[str, int]]:
    for fleet, peak, every in plans.fleets_of(plan):
        if not (groups := [group for group in every if group.kind in kinds]):
            continue
        yield f"\n#### {md(fleet)}\n\n" + (f"{peak}\n\n" if peak else ""), 0
        yield "| Change | VMs | Host | Why |\n|:--|:--|:--|:--|\n", 0
        for group in groups:
            yield _row(group, style), group.size
        for group in groups if style.full else ():
            yield _diff(group), 0


def _row(group: plans.Group, style: Style) -> str:
    sign, _ = plans.LOOKS[group.kind]
    what = f"{md(sign)} {group.kind}" + (f" ({group.wanted})" if group.wanted else "")
    why = [md(group.why)]
    if not style.full:
        values = ((it, md(plans.short(it.before)), md(plans.short(it.after))) for it in group.fields)
        why += [f"{md(field.path)}: {before} → {after} ({field.impact})" for field, before, after in values]
    return f"| {what} | {md(group.names)} | {md(group.hosts)} | {'<br>'.join(why)} |\n"


def _diff(group: plans.Group) -> str:
    """The fields of a group with their whole values, as a block that diff colours."""
    if not group.fields:
        return ""
    lines = [sanitize(group.names)]
    for field in group.fields:
        lines += [f"@@ {sanitize(field.path)} ({field.impact}) @@", *map(sanitize, plans.value_diff(field))]
    fence = "`" * (1 + max((len(ticks) for line in lines for ticks in _TICKS.findall(line)), default=2))
    return "\n".join(["", f"{fence}diff", *lines, fence, ""])


def md(text: str) -> str:
    """`text` that means itself wherever it stands."""
    plain = sanitize(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", plain).replace("@", "@&#8203;").replace("://", ":&#8203;//")


_SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/")


def problems_text(problems: Problems, style: Style) -> str:
    """Every problem as `path:line:column: message`, its line with a caret, a hint. Ends with a line break."""
    entries = [line for problem in problems for line in _problem(problem, style)]
    return "\n".join([*entries, style.paint(f"{counted(len(problems), 'problem')} in the specs", "bold")]) + "\n"


def sentence(problem: SpecProblem) -> str:
    """The problem and its hint on one line, without its place."""
    return f"{problem.message}; {problem.hint}" if problem.hint else problem.message


def _problem(problem: SpecProblem, style: Style) -> list[str]:
    place = f"{sanitize(problem.path)}:{problem.line}:{problem.column}:"
    lines = [f"{style.paint(place, 'bold')} {style.paint(sanitize(problem.message), 'red')}"]
    if problem.excerpt:
        before = min(problem.column - 1, SPECS.excerpt_characters_before)
        lines += [f"    {sanitize(problem.excerpt)}", f"    {' ' * before}{style.paint('^', 'green')}"]
    if problem.hint:
        lines.append(f"    {style.paint('hint:', 'cyan')} {sanitize(problem.hint)}")
    return lines


def problems_github(problems: Problems, warnings: Problems = (), error: str = "") -> str:
    """Workflow commands: each becomes an annotation on its line of a pull request; an `error` has no line."""
    return (f"::error::{_data(error)}\n" if error else "") + "".join(
        f"::{level} file={file},line={each.line},col={each.column}::{_data(sentence(each))}\n"
        for level, found in (("error", problems), ("warning", warnings))
        for each in found
        for file in [_data(each.path).replace(":", "%3A").replace(",", "%2C")]
    )


def _data(text: str) -> str:
    return sanitize(text).replace("%", "%25")


def problems_sarif(problems: Problems, warnings: Problems = (), error: str = "") -> str:
    """A SARIF 2.1.0 log with one run, which an `error` kept from its end."""
    notes = [{"level": "error", "message": {"text": error}}]
    run = {
        "tool": {"driver": {"name": "mikrom", "version": __version__, "rules": [{"id": "spec"}]}},
        "columnKind": "unicodeCodePoints",
        "results": [*(_result(each, "error") for each in problems), *(_result(each, "warning") for each in warnings)],
        **({"invocations": [{"executionSuccessful": False, "toolExecutionNotifications": notes}]} if error else {}),
    }
    return json_text({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]})


def _result(problem: SpecProblem, level: str) -> dict[str, Any]:
    region = {"startLine": problem.line, "startColumn": problem.column}
    place = {"artifactLocation": {"uri": _uri(problem.path)}, "region": region}
    message, places = {"text": sentence(problem)}, [{"physicalLocation": place}]
    return {"ruleId": "spec", "level": level, "message": message, "locations": places}


def _uri(path: str) -> str:
    encoded = "".join(chr(byte) if chr(byte) in _UNRESERVED else f"%{byte:02X}" for byte in path.encode())
    return f"file://{encoded}" if encoded.startswith("/") else encoded


def problems_junit(problems: Problems, _warnings: Problems = (), error: str = "") -> str:
    """A JUnit report: a failed test case for each problem, one for an `error`, or one that passed; no warnings."""
    from mikrom_reconcile.output.pages import rendered  # noqa: PLC0415 - as below

    return rendered("junit.xml", problems=problems, error=error, sentence=sentence, x=_xml)


def _xml(text: str) -> str:
    return escape(sanitize(text).replace("\ufffe", "\ufffd").replace("\uffff", "\ufffd"))


REPORTS: Final[Mapping[str, Callable[[Problems, Problems, str], str]]] = {
    "github": problems_github,
    "sarif": problems_sarif,
    "junit": problems_junit,
}
"""The forms of what is wrong with the specs, what has no effect there, and an error of another kind, for pipelines."""


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


def _html(plan: Plan, _: Style) -> str:
    from mikrom_reconcile.output.pages import plan_html  # noqa: PLC0415 - 6 ms that every other form need not pay

    return plan_html(plan)


PLAN: Final[Mapping[str, Callable[[Plan, Style], str]]] = {
    "text": plans.plan_text,
    "json": lambda plan, _style: json_of(plans.plan_document(plan)),
    "yaml": lambda plan, _style: yaml_of(plans.plan_document(plan)),
    "markdown": plan_markdown,
    "html": _html,
}


def validation_document(problems: Problems, warnings: Problems, counts: Counts) -> Document:
    """What is wrong with the specs, what has no effect, and how much there is."""
    named = dict(zip(("documents", "vms", "fleets"), counts, strict=True))
    return {"valid": not problems, **named, "problems": problems, "warnings": warnings}


def validation_text(warnings: Problems, counts: Counts) -> str:
    """What has no effect in specs without problems, and how much there is. Ends with a line break."""
    documents, vms, fleets = map(counted, counts, ("document", "VM", "fleet"))
    found = (f"{each.path}:{each.line}:{each.column}: warning: {sentence(each)}" for each in warnings)
    return "\n".join((*map(sanitize, found), f"{documents}, {vms} in {fleets}: fine\n"))

"""What has drifted and what is pending: as text, JSON and Markdown."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.planning.drift import DriftedVM
from mikrom_reconcile.output.formats import json_of, md
from mikrom_reconcile.output.plan import change_row, short, unreachable
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, UNREACHABLE
from mikrom_reconcile.output.text import Document, Style, counted, grouped, pick, section, table
from mikrom_reconcile.times_and_sizes import OUTPUT


class DriftReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is not as it was last applied, and what the specs want otherwise since."""

    plan: Plan
    drift: tuple[DriftedVM, ...]
    pending: tuple[VMChange, ...]

    @property
    def exit_code(self) -> int:
        """2 for drift, 4 for hosts that could not be read, 6 for both."""
        return CHANGES_OR_FAILED * bool(self.drift) + UNREACHABLE * bool(self.plan.unreachable)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """One for each field that differs."""
        yield "VM", "HOST", "FIELD", "APPLIED", "FOUND", "CAUSE"
        for each in self.drift:
            for field in each.fields:
                yield each.vm, each.host, field.path, short(field.before), short(field.after), field.cause

    def summary(self) -> str:
        """All of it in one line."""
        drift = f"{counted(len(self.drift), 'VM')} drifted" if self.drift else "No drift"
        unread = "; not all could be read" if self.plan.unreachable else ""
        names = grouped(change.name for change in self.pending)
        return drift + unread + (f"; pending since the specs changed: {names}." if names else ".")


def _document(report: DriftReport) -> Document:
    pending = [change_row(change) for change in report.pending]
    known = pick(report.plan, "project", "revision", "taken_at", "unreachable")
    return known | {"drift": report.drift, "pending": pending, "exit_code": report.exit_code}


def _text(report: DriftReport, style: Style) -> str:
    header, *rows = report.rows()
    unread = section("Could not be read", unreachable(report.plan), style, "red")
    return (table(header, rows, style) if rows else "") + f"{unread}{style.paint(report.summary(), 'bold')}\n"


def _markdown(report: DriftReport, _: Style) -> str:
    header, *rows = report.rows()
    lines = [f"### Drift of {md(report.plan.project)}", "", f"**{md(report.summary())}**", ""]
    lines += [f"- {md(line)}" for line in unreachable(report.plan)]
    if rows:
        lines += [f"| {' | '.join(header)} |", "|:--" * len(header) + "|"]
    room = OUTPUT.markdown_characters - sum(map(len, lines)) - 200
    for row in rows:
        line = f"| {' | '.join(map(md, row))} |"
        if (room := room - len(line) - 1) < 0:
            return "\n".join([*lines, "", "_Cut here: `mikrom drift` shows all._", ""])
        lines.append(line)
    return "\n".join([*lines, ""])


DRIFT: Final[Mapping[str, Callable[[DriftReport, Style], str]]] = {
    "text": _text,
    "json": lambda report, _style: json_of(_document(report)),
    "markdown": _markdown,
}

"""Arguments and options that several commands share, so that each means the same everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from mikrom_reconcile.core.model.desired import Share

F = TypeVar("F", bound=Callable[..., Any])

paths = click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path())


def output(forms: Iterable[str] = ("text", "json")) -> Callable[[F], F]:
    """`-o`, with the forms that this command has; the first is the default."""
    words = list(forms)
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(words),
        default=words[0],
        show_default=True,
        help="Form of the output.",
    )


class ShareType(click.ParamType[Share]):
    """A number of VMs, or a percentage of a fleet."""

    name = "SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Share:
        """`20%` stays text, `5` becomes a number."""
        if isinstance(value, int):
            return value
        digits = str(value).removesuffix("%")
        if not digits.isascii() or not digits.isdigit() or (digits != value and int(digits) > 100):
            self.fail(f"{value!r} is neither a number of VMs nor a percentage from 0% to 100%", param, ctx)
        return f"{int(digits)}%" if digits != value else int(digits)


class SecondsType(click.ParamType[float]):
    """A time in seconds, above 0."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A plain number of seconds."""
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        if not 0 < seconds < 1e9:
            self.fail(f"{value!r} is not above 0", param, ctx)
        return seconds


timeout = click.option("--timeout", type=SecondsType(), help="Stop beginning actions after this long [MIKROM_TIMEOUT].")
forks = click.option("--forks", type=click.IntRange(1), help="Actions at once per host [MIKROM_FORKS].")
yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")

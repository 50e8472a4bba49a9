"""Arguments and options that several commands share, so that each means the same everywhere."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from mikrom_reconcile import settings
from mikrom_reconcile.core.model.desired import Share
from mikrom_reconcile.core.model.errors import SpecError, UsageError
from mikrom_reconcile.output import formats

F = TypeVar("F", bound=Callable[..., Any])


def no_dash(_ctx: click.Context, _param: click.Parameter, value: Any) -> Any:
    """`value`, unless it is the "-" that other programs take for standard input or output."""
    if value == "-" or (isinstance(value, tuple) and "-" in value):
        raise UsageError("-: neither is standard input read nor written to standard output here; name a file")
    return value


paths = click.argument("paths", nargs=-1, metavar="[PATH]...", type=click.Path(), callback=no_dash)


def output(forms: Iterable[str] = ("text", *formats.DOCUMENT)) -> Callable[[F], F]:
    """`-o`, with the forms that this command has (by default those of a document); the first is the default."""
    words = list(forms)
    choice, text = click.Choice(words), "Form of the output."
    return click.option("-o", "--output", "form", type=choice, default=words[0], show_default=True, help=text)


def share(text: str) -> Share:
    """A number of VMs, or a percentage of a fleet: `20%` stays text, `5` becomes a number."""
    digits = text.removesuffix("%")
    if not digits.isascii() or not digits.isdigit() or (digits != text and int(digits) > 100):
        raise click.BadParameter(f"{text!r} is neither a number of VMs nor a percentage from 0% to 100%")
    return f"{int(digits)}%" if digits != text else int(digits)


def seconds(text: str) -> float:
    """A time in seconds, above 0."""
    try:
        return settings.seconds(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number of seconds above 0") from None


timeout = click.option("--timeout", "timeout_s", type=seconds, help="Begin no action after so long [MIKROM_TIMEOUT].")
forks = click.option("--forks", type=click.IntRange(1), help="Actions at once per host [MIKROM_FORKS].")


def execution(command: F) -> F:
    """`--timeout`, `--forks` and `-o`, of everything that executes actions."""
    return timeout(forks(output()(command)))


yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
diff = click.option("--diff", "full", is_flag=True, help="Show every value that changes in full, line by line.")
wait = click.option("--wait/--no-wait", default=True, help="Whether to wait for the end, or leave it to control.")
prune_max = click.option("--prune-max", type=share, help="How much of a fleet this run may remove: 5, or 20%.")
retry = click.option("--retry", is_flag=True, help="Bring back what was given up after too many restarts.")
override_freeze = click.option("--override-freeze", is_flag=True, help="Change it although it is frozen; this is kept.")
assume_dead = click.option(
    "--assume-dead", multiple=True, metavar="HOST",
    help="This host is off for good: its VMs may be made elsewhere. Only for a host that does not answer.",
)  # fmt: skip


def selection(command: F) -> F:
    """`--limit`, `--tags`, `--skip-tags` and `-e`, under the names that a RunRequest has for them."""
    without = _tags("--skip-tags", "Not the fleets with any of these tags.")
    return limit(_tags("--tags", "Only the fleets with any of these tags.")(without(extra_vars(command))))


limit = click.option("--limit", metavar="PATTERN", help="Only these VMs, fleets, hosts or groups: web:!web-00*.")


def _tags(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, multiple=True, callback=_words, metavar="TAG,...", help=text)


def _words(_ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    words = tuple(word.strip() for value in values for word in value.split(","))
    if not all(words):
        raise UsageError(f"{param.opts[0]}: an empty word selects nothing; leave the option out, or say which tag")
    return words


def _variables(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    given: set[str] = set()
    for text in values:
        more = _from_file(text[1:]) if text.startswith("@") else _from_word(text)
        for name in more:
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise UsageError(f"-e: {name!r} cannot be a variable's name; write letters, digits and '_'")
            if name in given:
                raise UsageError(f"-e: {name} is given twice; give it once, after the files that have it too")
        given |= set() if text.startswith("@") else more.keys()
        found |= more
    return found


def _from_word(text: str) -> dict[str, Any]:
    from mikrom_reconcile.core.parsing.yaml_words import parse_scalar

    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"-e {text}: write -e name=value, or -e @file.yml")
    if re.search("[\ud800-\udfff]", value):  # bytes that Python could not read
        raise UsageError(f"-e {name}: its value is no UTF-8")
    return {name: parse_scalar(value)}


def _from_file(path: str) -> dict[str, Any]:
    from mikrom_reconcile.control.sources.files import read_files
    from mikrom_reconcile.core.parsing.documents import Reading, read_file

    if not Path(path).is_file():
        raise UsageError(f"-e @{path}: there is no such file of variables")
    found: dict[str, Any] = {}
    reading = Reading()
    read = [each for file in read_files([Path(path)]).files for each in read_file(file, reading)]
    if reading.problems:
        raise SpecError(tuple(reading.problems))
    for document, value in read:
        if not isinstance(value, dict):
            raise UsageError(f"-e @{path}: line {document.line} begins no mapping of variables")
        found |= msgspec.to_builtins(value, enc_hook=str)  # spelled as there, also where it travels
    return found


extra_vars = click.option(
    "-e", "--extra-vars", multiple=True, callback=_variables, metavar="NAME=VALUE",
    help="A variable that wins over all others, or @file.yml with many; NAME='\"1.30\"' is text.",
)  # fmt: skip

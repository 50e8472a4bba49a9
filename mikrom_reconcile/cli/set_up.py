"""`mikrom schema`, `mikrom completion` and `mikrom version`."""

from __future__ import annotations

import json

import click

from mikrom_reconcile import __version__, wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.terminal import present, show


@click.command()
@click.argument("kind", required=False, type=click.Choice(wiring.KINDS, case_sensitive=False))
def schema(kind: str | None) -> int:
    """The JSON Schema of one kind of document, or of any: for editors and other tools."""
    show(wiring.schemas()[kind] if kind else _of_any_kind())
    return 0


def _of_any_kind() -> str:
    """The umbrella with the schemas that it refers to inside."""
    text = wiring.schema_text("mikrom")
    inside = {}
    for kind, own in wiring.schemas().items():
        text = text.replace(f'"{kind.lower()}.schema.json"', f'"#/$defs/{kind}"')
        inside[kind] = {key: value for key, value in json.loads(own).items() if key != "$schema"}
    return json.dumps({**json.loads(text), "$defs": inside}, indent=2, ensure_ascii=False) + "\n"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """The script that completes commands, options and names; for bash: eval "$(mikrom completion bash)"."""
    from click.shell_completion import get_completion_class

    from mikrom_reconcile.cli.entry import COMPLETE_VARIABLE
    from mikrom_reconcile.cli.root import root

    made = get_completion_class(shell)
    assert made is not None, "the shells above are those that click knows"  # noqa: S101
    show(made(root, {}, "mikrom", COMPLETE_VARIABLE).source() + "\n")
    return 0


@click.command()
@options.output()
def version(form: str) -> int:
    """The version of mikrom."""
    present(form, lambda: {"version": __version__}, lambda _: f"{__version__}\n")
    return 0

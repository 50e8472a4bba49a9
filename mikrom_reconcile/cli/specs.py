"""`mikrom init`, `validate`, `render`, `explain`, `schema`: what may be in the specs, what they come to, and why."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.apply import request_for
from mikrom_reconcile.cli.entry import present, show
from mikrom_reconcile.cli.queries import names_for_tab, present_views, specs_in, unknown, views_of
from mikrom_reconcile.core.model.errors import SourceError, SpecError
from mikrom_reconcile.core.model.specs import SpecProblem
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.core.planning.selection import limited
from mikrom_reconcile.core.specs.load import expand
from mikrom_reconcile.core.specs.resolve import Provenance
from mikrom_reconcile.core.specs.warnings import spec_warnings
from mikrom_reconcile.output import explanation as output
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.hosts import vms_in
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.settings import load
from mikrom_reconcile.times_and_sizes import SPECS


@click.command()
@options.paths
@options.output(formats.VALIDATION)
def validate(paths: tuple[str, ...], form: str) -> int:
    """Check the specs and tell every mistake at once, with its place. Asks no host."""
    problems: tuple[SpecProblem, ...] = ()
    warnings: tuple[SpecProblem, ...] = ()
    counts = (0, 0, 0)
    try:
        settings = load()
        specs = validate_specs(wiring.read_tree(settings, paths), wiring.schemas(), here=settings.host)
        counts = (specs.documents, len(render_all(specs, here=settings.host)), len(specs.fleets))
        warnings = spec_warnings(specs, expand(specs))
    except SpecError as error:
        if form == "text":
            raise
        problems = error.problems
    show(formats.VALIDATION[form](problems, warnings, counts))
    return 1 if problems else 0


@click.command()
@options.paths
@options.limit
@options.extra_vars
@click.option("--explain", "explained", is_flag=True, help="Name for every value where it comes from.")
@options.output(("yaml", "json", "text"))
def render(paths: tuple[str, ...], form: str, limit: str | None, extra_vars: dict[str, Any], *, explained: bool) -> int:
    """The VMs that the specs stand for. Asks no host: each is placed as if none existed yet."""
    settings = load()
    specs = specs_in(settings, paths, extra_vars)
    vms = render_all(specs, here=settings.host)
    if limit is not None:
        names = limited(limit, ((vm.name, vm.host, vm.fleet) for vm in vms), specs)
        vms = tuple(vm for vm in vms if vm.name in names)
    known = Provenance(specs)
    pending = {vm.name: vm for vm in expand(specs)} if explained else {}
    origins = {vm.name: known.of(pending[vm.name], vm.host) for vm in vms if vm.name in pending}
    document = output.rendered_document(vms, origins)
    present(form, lambda: document, lambda style: output.rendered_text(vms, origins, style))
    return 0


@click.command()
@click.argument("name", shell_complete=names_for_tab)
@options.paths
@options.extra_vars
@options.output()
def explain(name: str, paths: tuple[str, ...], form: str, extra_vars: dict[str, Any]) -> int:
    """Why a VM is as it is and what happens to it: spec, variables, what was observed, rule, action."""
    settings = load()
    specs = specs_in(settings, paths, extra_vars)
    engine = wiring.open_engine(settings)
    planned = engine.plan(request_for("explain", specs.tree, settings, extra_vars=extra_vars))
    views = views_of(engine)
    found = output.explain(name, specs, planned, views, here=settings.host)
    if found is None:
        raise unknown(name, [*(vm.name for vm in expand(specs)), *(row.name for row in vms_in(views))], views)
    document, text = output.explanation_document, output.explanation_text
    present_views(form, views, lambda: document(found), lambda style: text(found, style))
    return 0


@click.command()
@click.argument("kind", required=False, type=click.Choice(wiring.KINDS, case_sensitive=False))
def schema(kind: str | None) -> int:
    """The JSON Schema of one kind of document, or of any: for editors and other tools."""
    show(wiring.schemas()[kind] if kind else _schema_of_any_kind())
    return 0


def _schema_of_any_kind() -> str:
    """The schema that refers to those of all kinds, with these inside."""
    text = wiring.schema_text("mikrom")
    inside = {}
    for kind, own in wiring.schemas().items():
        text = text.replace(f'"{kind.lower()}.schema.json"', f'"#/$defs/{kind}"')
        inside[kind] = {key: value for key, value in json.loads(own).items() if key != "$schema"}
    return json.dumps({**json.loads(text), "$defs": inside}, indent=2, ensure_ascii=False) + "\n"


FILES = {
    "specs/project.yml": "project.yml",
    "specs/web.yml": "web.yml",
    ".pre-commit-config.yaml": "pre-commit.yml",
    ".github/workflows/mikrom.yml": "github.yml",
    ".gitlab-ci.yml": "gitlab.yml",
}
"""Path to the file in `starter` that is written there; PROJECT_NAME in it is the project."""


@click.command()
@click.argument("folder", default=".", metavar="[DIR]", callback=options.no_dash)
def init(folder: str) -> int:
    """Write a starter project: a project and a fleet in specs/, and examples for pre-commit, GitHub and GitLab.

    Nothing that is there is overwritten.
    """
    base, starter = Path(folder), Path(__file__).with_name("starter")
    there = [path for path in FILES if os.path.lexists(base / path)]
    if there:
        raise SourceError(f"{folder} has {', '.join(there)} already; nothing was written")
    name = re.sub("[^a-z0-9]+", "-", base.resolve().name.lower())[: SPECS.name_characters].strip("-") or "demo"
    try:
        for path, text in FILES.items():
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            with (base / path).open("x", encoding="utf-8") as file:
                file.write((starter / text).read_text(encoding="utf-8").replace("PROJECT_NAME", name))
    except OSError as error:
        raise SourceError(f"{error.filename}: {error.strerror}") from error
    show("".join(f"wrote {sanitize(str(base / path))}\n" for path in FILES))
    cd = "" if folder == "." else f"cd {sanitize(shlex.quote(folder))} && "
    show(f"Next: {cd}mikrom validate && mikrom plan\n")
    return 0

"""`mikrom init`, `validate`, `render`, `explain`, `schema`: what may be in the specs, what they come to, and why."""

import fcntl
import json
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import options, queries, run_flow
from mikrom_reconcile.cli.entry import Commands, present, show
from mikrom_reconcile.control.sources.files import read_files
from mikrom_reconcile.core.model.documents import SourceTree, SpecDocument, SpecProblem
from mikrom_reconcile.core.model.errors import SourceError, SpecError, UsageError
from mikrom_reconcile.core.parsing import documents, schema_errors, variables, yaml_words
from mikrom_reconcile.core.parsing.documents import Places
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.core.planning.selection import limited
from mikrom_reconcile.core.specs.load import expand
from mikrom_reconcile.core.specs.resolve import Provenance
from mikrom_reconcile.core.specs.warnings import spec_warnings
from mikrom_reconcile.output import explanation as output, formats
from mikrom_reconcile.output.tables import vms_in
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.settings import load
from mikrom_reconcile.system.files import descriptor, write_named
from mikrom_reconcile.times_and_sizes import SPECS


@click.command()
@options.paths
@options.output(("text", "json", *formats.REPORTS))
def validate(paths: tuple[str, ...], form: str) -> int:
    """Check the specs and tell every mistake at once, with its place. Asks no host."""
    problems: tuple[SpecProblem, ...] = ()
    warnings: tuple[SpecProblem, ...] = ()
    counts, settings = (0, 0, 0), load()
    try:
        specs = validate_specs(wiring.read_tree(settings, paths), wiring.schemas(), here=settings.host)
        counts = (specs.documents, len(render_all(specs, here=settings.host)), len(specs.fleets))
        warnings = spec_warnings(specs, expand(specs))
    except SpecError as error:
        if form == "text":
            raise
        problems = error.problems
    if form in formats.REPORTS:
        show(formats.REPORTS[form](problems, warnings, ""))
    else:
        document = formats.validation_document(problems, warnings, counts)
        present(form, lambda: document, lambda _: formats.validation_text(warnings, counts))
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
    specs = queries.specs_in(settings, paths, extra_vars)
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
@click.argument("name", shell_complete=queries.names_for_tab)
@options.paths
@options.extra_vars
@options.output()
def explain(name: str, paths: tuple[str, ...], form: str, extra_vars: dict[str, Any]) -> int:
    """Why a VM is as it is and what happens to it: spec, variables, what was observed, rule, action."""
    settings = load()
    specs = queries.specs_in(settings, paths, extra_vars)
    engine = wiring.open_engine(settings)
    planned = engine.plan(run_flow.request_for("explain", specs.tree, settings, extra_vars=extra_vars))
    views = queries.views_of(engine)
    found = output.explain(name, specs, planned, views, here=settings.host)
    if found is None:
        raise queries.unknown(name, [*(vm.name for vm in expand(specs)), *(row.name for row in vms_in(views))], views)
    document, text = output.explanation_document, output.explanation_text
    queries.present_views(form, views, lambda: document(found), lambda style: text(found, style))
    return 0


@click.command()
@click.argument("kind", required=False, type=click.Choice(wiring.KINDS, case_sensitive=False))
def schema(kind: str | None) -> int:
    """The JSON Schema of one kind of document, or of any: for editors and other tools."""
    show(wiring.schemas()[kind] if kind else _schema_of_any_kind())
    return 0


def _schema_of_any_kind() -> str:
    text = wiring.schema_text("mikrom")
    inside = {}
    for kind, own in wiring.schemas().items():
        text = text.replace(f'"{kind.lower()}.schema.json"', f'"#/$defs/{kind}"')
        inside[kind] = {key: value for key, value in json.loads(own).items() if key != "$schema"}
    return json.dumps({**json.loads(text), "$defs": inside}, indent=2, ensure_ascii=False) + "\n"


@click.group(cls=Commands)
def image() -> None:
    """Pin container images."""


@image.command()
@click.argument("name")
@options.paths
@options.timeout
def pin(name: str, paths: tuple[str, ...], timeout_s: float | None) -> int:
    """Write the digest that a registry has now for the tag of the Image NAME into its document, and nothing else.

    Each digest that was written there before is replaced: a pinned image is brought up to date in the same way.
    """
    settings = load()
    places = paths or (settings.chosen_specs(),)
    if any(place.startswith("git+") for place in places):
        raise UsageError("a digest is written into a file: name the files of a checkout, not git+")
    tree = read_files([Path(place) for place in places])
    document, written = _container_image(tree, name)
    digest = wiring.digest_of_tag(settings, written, deadline_s=timeout_s or settings.timeout_s)
    pinned = f"{written.partition('@')[0]}@sha256:{digest}"
    line, column = Places(tree).find(document, _CONTAINER_IMAGE)
    if pinned != written:
        _rewrite(Path(document.path), line, column, written, pinned)
    show(f"{document.path}:{line}: {pinned}{' (as before)' if pinned == written else ''}\n")
    return 0


_CONTAINER_IMAGE = ("spec", "rootfs", "oci")


def _container_image(tree: SourceTree, name: str) -> tuple[SpecDocument, str]:
    """The document of an Image, which may lack a digest, and what it says. Raises SpecError, UsageError."""
    reading = documents.read_tree(tree, wiring.schemas())
    images = [each for each in (*reading.broken, *reading.misspelt, *reading.documents) if each.kind == "Image"]
    named = [each for each in images if each.name == name]
    if not (named or reading.whole):
        raise SpecError(tuple(reading.problems))
    if not named:
        near = schema_errors.nearest(name, [each.name for each in images])
        raise UsageError(f"no Image is called {yaml_words.shown(name)}; {near or 'there is none'}")
    if len(named) > 1:
        where = " and ".join(sorted({each.path for each in named}))
        raise UsageError(f"{len(named)} Images are called {name}, in {where}: rename one, or say which file")
    written = variables.dig(named[0].body, _CONTAINER_IMAGE)
    if not isinstance(written, str):
        raise UsageError(f"the Image {name} has no rootfs.oci: only a container image of a registry has a tag")
    return named[0], written


def _rewrite(place: Path, line: int, column: int, old: str, new: str) -> None:
    """Put one text in the place of another in a file. Raises UsageError."""
    path = place.resolve()  # a link stays one
    try:
        with descriptor(path.parent, os.O_RDONLY) as folder:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(folder, fcntl.LOCK_EX)  # several may be pinned at once
            lines = path.read_bytes().decode().split("\n")
            at = lines[line - 1].find(old, column - 1)
            before, after = lines[line - 1][:at], lines[line - 1][at + len(old) :]
            if not 0 <= at - (column - 1) <= _BEFORE_A_TEXT or after.startswith("@"):
                raise UsageError(f"{place}:{line}: it is not written here in one piece; write {new}")
            lines[line - 1] = before + new + after
            write_named(str(path), "\n".join(lines).encode())
    except OSError as error:
        raise UsageError(f"{place}: {error.strerror}") from error


_BEFORE_A_TEXT = 2  # a quote, and a byte order mark

FILES = {"specs/project.yml": "project.yml", "specs/web.yml": "web.yml", ".pre-commit-config.yaml": "pre-commit.yml"}
"""Path to the file in `starter` that is written there; PROJECT_NAME in it is the project."""

PIPELINES = {"github": {".github/workflows/mikrom.yml": "github.yml"}, "gitlab": {".gitlab-ci.yml": "gitlab.yml"}}


@click.command()
@click.argument("folder", default=".", metavar="[DIR]", callback=options.no_dash)
@click.option("--ci", type=click.Choice(list(PIPELINES)), help="Write a pipeline for it, too; beside specs only that.")
def init(folder: str, ci: str | None) -> int:
    """Write a starter project: a project and a fleet in specs/, and an example for pre-commit.

    Nothing that is there is overwritten.
    """
    base, starter = Path(folder), Path(__file__).with_name("starter")
    files = {} if ci and (base / "specs").is_dir() else FILES
    files |= PIPELINES[ci] if ci else {}
    there = [path for path in files if os.path.lexists(base / path)]
    if there:
        raise SourceError(f"{folder} has {', '.join(there)} already; nothing was written")
    name = re.sub("[^a-z0-9]+", "-", base.resolve().name.lower())[: SPECS.name_characters].strip("-") or "demo"
    try:
        for path, text in files.items():
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            with (base / path).open("x", encoding="utf-8") as file:
                file.write((starter / text).read_text(encoding="utf-8").replace("PROJECT_NAME", name))
    except OSError as error:
        raise SourceError(f"{error.filename}: {error.strerror}") from error
    show("".join(f"wrote {sanitize(str(base / path))}\n" for path in files))
    cd = "" if folder == "." else f"cd {sanitize(shlex.quote(folder))} && "
    show(f"Next: {cd}mikrom validate && mikrom plan\n")
    return 0

"""`mikrom init`: the files of a project to begin with."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click

from mikrom_reconcile.cli import options
from mikrom_reconcile.cli.terminal import show
from mikrom_reconcile.core.model.errors import SourceError
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.times_and_sizes import SPECS

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

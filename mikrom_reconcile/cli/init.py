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
from mikrom_reconcile.limits import SPECS
from mikrom_reconcile.output.text import sanitize

_PROJECT = """\
# These files are the whole truth of this project: a fleet that is removed from them is removed from the hosts.
apiVersion: mikrom/v1
kind: Project
metadata: {name: "NAME"}
"""
_FLEET = """\
apiVersion: mikrom/v1
kind: Fleet
metadata:
  name: web
  tags: [web]                          # mikrom plan --tags web
spec:
  replicas: 3                          # web-000, web-001, web-002
  vars: {memory: 64}                   # mikrom plan -e memory=128
  template:
    image: hello                       # the demo guest that ships with mikrom
    machine: {vcpu_count: 1, mem_size_mib: "${memory}"}
  overrides:
    - {match: web-000, machine: {mem_size_mib: 96}}
  prune: {max: 20%}                    # more than that is never removed at once without a person's word
"""
_PRE_COMMIT = """\
repos:
  - repo: local
    hooks:
      - id: mikrom-validate
        name: mikrom validate
        entry: mikrom validate
        language: system
        files: ^specs/
        pass_filenames: false
"""
_GITHUB = """\
# Shows what a pull request would change, applies what is merged, and fails where VMs are not as specified any more.
# Each job needs a runner of yours that has mikrom on its PATH: a hypervisor host, or a machine that reaches the broker.
name: mikrom
on:
  pull_request:
  push: {branches: [main]}
  schedule: [{cron: "17 * * * *"}]
permissions: {contents: read}
env:
  MIKROM_BROKER_URL: ${{ secrets.MIKROM_BROKER_URL }}
jobs:
  plan:
    # what a fork says must not run on a machine of yours
    if: github.event.pull_request.head.repo.full_name == github.repository
    runs-on: [self-hosted, mikrom]
    steps:
      - uses: actions/checkout@v4
      - run: mikrom validate -o github
      - run: mikrom plan -o markdown > plan.md
      - run: cat plan.md >> "$GITHUB_STEP_SUMMARY"
        if: always()
      - uses: actions/upload-artifact@v4
        if: always()
        with: {name: plan, path: plan.md}
  apply:
    if: github.event_name == 'push'
    concurrency: mikrom
    runs-on: [self-hosted, mikrom]
    steps:
      - uses: actions/checkout@v4
      - run: mikrom apply --yes
  drift:
    if: github.event_name == 'schedule'
    runs-on: [self-hosted, mikrom]
    steps:
      - uses: actions/checkout@v4
      - run: mikrom plan --detailed-exitcode
"""
_GITLAB = """\
# Shows what a merge request would change, applies what is merged, and fails where VMs are not as specified any more.
# Each job needs a runner of yours that has mikrom on its PATH; MIKROM_BROKER_URL is a CI/CD variable, drift a schedule.
default: {tags: [mikrom]}
plan:
  rules: [{if: $CI_PIPELINE_SOURCE == "merge_request_event"}]
  script:
    - mikrom validate
    - mikrom plan -o markdown > plan.md
  artifacts: {paths: [plan.md], when: always}
apply:
  rules: [{if: $CI_PIPELINE_SOURCE == "push" && $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH}]
  resource_group: mikrom
  script:
    - mikrom apply --yes
drift:
  rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]
  script:
    - mikrom plan --detailed-exitcode
"""
FILES = {
    "specs/project.yml": _PROJECT,
    "specs/web.yml": _FLEET,
    ".pre-commit-config.yaml": _PRE_COMMIT,
    ".github/workflows/mikrom.yml": _GITHUB,
    ".gitlab-ci.yml": _GITLAB,
}
"""Path to text; NAME is the project."""


@click.command()
@click.argument("folder", default=".", metavar="[DIR]", callback=options.no_dash)
def init(folder: str) -> int:
    """Write a starter project: a project and a fleet in specs/, and examples for pre-commit, GitHub and GitLab.

    Nothing that is there is overwritten.
    """
    base = Path(folder)
    there = [path for path in FILES if os.path.lexists(base / path)]
    if there:
        raise SourceError(f"{folder} has {', '.join(there)} already; nothing was written")
    name = re.sub("[^a-z0-9]+", "-", base.resolve().name.lower())[: SPECS.name_characters].strip("-") or "demo"
    try:
        for path, text in FILES.items():
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            with (base / path).open("x", encoding="utf-8") as file:
                file.write(text.replace("NAME", name, 1) if text is _PROJECT else text)
    except OSError as error:
        raise SourceError(f"{error.filename}: {error.strerror}") from error
    show("".join(f"wrote {sanitize(str(base / path))}\n" for path in FILES))
    cd = "" if folder == "." else f"cd {sanitize(shlex.quote(folder))} && "
    show(f"Next: {cd}mikrom validate && mikrom plan\n")
    return 0

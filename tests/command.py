"""`mikrom` as a process of its own: what it is run on, and what it says. Its fixtures are in e2e/conftest.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PROJECT = Path(__file__).parents[1]
SCHEMAS = json.loads((PROJECT / "tests" / "documents.schema.json").read_text())
WEB = """\
apiVersion: mikrom/v1
kind: Project
metadata: {name: demo}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: %d
  template: {image: hello, machine: {mem_size_mib: 16}}
"""
Run = subprocess.CompletedProcess[str]
Mikrom = Callable[..., Run]


def document(name: str, done: Run) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(done.stdout)
    Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMAS["$defs"]}).validate(loaded)
    return loaded


def names(mikrom: Mikrom) -> list[str]:
    return [vm["name"] for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]]


def write_specs(folder: Path, text: str) -> None:
    (folder / "specs" / "web.yml").write_text(text)

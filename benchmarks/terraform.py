"""The same VMs for Terraform: `terraform_data` resources with the same fields, and a state in which one in a hundred
differs. Both are files here, so it reads no infrastructure at all; no provider is downloaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from random import Random
from typing import Any

_FIELDS = """\
  input = {{
    name  = {name}
    tags  = ["web", "tier-1"]
    hosts = "all"
    vars = {{
      role  = "web"
      owner = "shop"
    }}
    image = "hello"
    state = "running"
    machine = {{
      vcpu_count   = 1
      mem_size_mib = 128
    }}
    boot_args = "console=ttyS0 quiet loglevel=3"
    restart = {{
      policy   = "always"
      attempts = 3
    }}
    prune = {{
      max         = "20%"
      allow_empty = false
    }}
    prevent_destroy = false
  }}
}}
"""
_TYPE = [
    "object",
    {
        "name": "string",
        "tags": ["tuple", ["string", "string"]],
        "hosts": "string",
        "vars": ["object", {"role": "string", "owner": "string"}],
        "image": "string",
        "state": "string",
        "machine": ["object", {"vcpu_count": "number", "mem_size_mib": "number"}],
        "boot_args": "string",
        "restart": ["object", {"policy": "string", "attempts": "number"}],
        "prune": ["object", {"max": "string", "allow_empty": "bool"}],
        "prevent_destroy": "bool",
    },
]
_PROVIDER = 'provider["terraform.io/builtin/terraform"]'


def write_project(form: str, count: int, drifted: Collection[int], folder: Path) -> None:
    """`blocks`: a literal resource block for each VM. `for_each`: one resource, as users write it."""
    folder.mkdir(parents=True)
    each = range(count)
    if form == "blocks":
        text = "".join(f'resource "terraform_data" "{_name(n)}" {{\n{_FIELDS.format(name=_quoted(n))}' for n in each)
        resources = [_resource(_name(n), [{"attributes": _attributes(n, n in drifted)}]) for n in each]
    else:
        keys = f'  for_each = toset([for n in range({count}) : format("vm%06d", n)])\n'
        text = f'resource "terraform_data" "vm" {{\n{keys}{_FIELDS.format(name="each.key")}'
        instances = [{"index_key": _name(n), "attributes": _attributes(n, n in drifted)} for n in each]
        resources = [_resource("vm", instances)]
    (folder / "main.tf").write_text(text)
    state = {
        "version": 4,
        "terraform_version": "1.11.0",
        "serial": 1,
        "lineage": "0" * 8,
        "outputs": {},
        "resources": resources,
    }
    (folder / "terraform.tfstate").write_text(json.dumps(state))
    subprocess.run(["terraform", "init", "-input=false"], cwd=folder, check=True, capture_output=True)


def main(form: str, count: str, folder: str, drifted: str) -> None:
    """Write one project, in a process of its own: what it takes must not be counted for its siblings."""
    chosen = Random(1).sample(range(int(count)), int(int(count) * float(drifted)))
    write_project(form, int(count), set(chosen), Path(folder))


def _name(number: int) -> str:
    return f"vm{number:06d}"


def _quoted(number: int) -> str:
    return f'"{_name(number)}"'


def _resource(name: str, instances: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "mode": "managed",
        "type": "terraform_data",
        "name": name,
        "provider": _PROVIDER,
        "instances": [{"schema_version": 0, **instance} for instance in instances],
    }


def _attributes(number: int, drifted: bool) -> dict[str, Any]:  # noqa: FBT001 - one of a pair of VMs
    value = {
        "name": _name(number),
        "tags": ["web", "tier-1"],
        "hosts": "all",
        "vars": {"role": "web", "owner": "shop"},
        "image": "hello",
        "state": "running",
        "machine": {"vcpu_count": 1, "mem_size_mib": 64 if drifted else 128},
        "boot_args": "console=ttyS0 quiet loglevel=3",
        "restart": {"policy": "always", "attempts": 3},
        "prune": {"max": "20%", "allow_empty": False},
        "prevent_destroy": False,
    }
    typed = {"value": value, "type": _TYPE}
    return {"id": f"{number:032x}", "input": typed, "output": typed, "triggers_replace": None}


if __name__ == "__main__":
    main(*sys.argv[1:])

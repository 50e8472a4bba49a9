"""The one table of what is recorded for a VM: each field's path, what changing it costs, and where it is observed.

To add a field: the schema, a Struct in `model/desired.py`, a row here, the driver, and docs/adding-a-field.md.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import msgspec

from mikrom_reconcile.core.model.desired import Policy, State, VMSpec
from mikrom_reconcile.core.model.plan import FieldChange, Impact

_encode = msgspec.json.Encoder(order="deterministic").encode

Observed = Literal["vmm", "record"]
"""Who knows the real value: the VMM itself, or only the VM's record."""


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table."""

    impact: Impact
    observed: Observed


FIELDS: dict[str, Field] = {
    "image": Field(impact="restart", observed="record"),
    "machine.vcpu_count": Field(impact="restart", observed="vmm"),
    "machine.mem_size_mib": Field(impact="restart", observed="vmm"),
    "boot_args": Field(impact="restart", observed="vmm"),
    "restart.policy": Field(impact="record", observed="record"),
    "restart.attempts": Field(impact="record", observed="record"),
    "restart.interval": Field(impact="record", observed="record"),
    "restart.delay": Field(impact="record", observed="record"),
    # What follows is no part of the VMM's configuration; a changed state is acted on by its own rules.
    "fleet": Field(impact="record", observed="record"),
    "state": Field(impact="record", observed="record"),
    "prune.max": Field(impact="record", observed="record"),
    "prune.allow_empty": Field(impact="record", observed="record"),
    "lifecycle.prevent_destroy": Field(impact="record", observed="record"),
}
"""Impacts as measured on Firecracker 1.12.1."""

SPEC_PATHS = tuple(path for path, field in FIELDS.items() if field.impact != "record")
"""Paths of the VMM's configuration: those that `ignore_changes` may name."""

_RECORD_PATHS = tuple(
    path for path in FIELDS if path not in SPEC_PATHS and path.partition(".")[0] in VMSpec.__struct_fields__
)


def needs_restart(applied: VMSpec, wanted: VMSpec) -> bool:
    """Whether the VMM has to go down for its spec to change so; the rest is only recorded."""
    return bool(without(applied, _RECORD_PATHS) != without(wanted, _RECORD_PATHS))


def recorded(*, fleet: str, state: State, spec: VMSpec, policy: Policy) -> dict[str, Any]:
    """The recorded values of a VM by path, in the spec language's own words."""
    return {
        **msgspec.to_builtins(spec),
        "fleet": fleet,
        "state": state,
        "prune": {"max": policy.prune_max, "allow_empty": policy.allow_empty},
        "lifecycle": {"prevent_destroy": bool(policy.prevent_destroy)},
    }


def without(spec: VMSpec, ignored: tuple[str, ...]) -> Any:
    """`spec` without the ignored paths, for digests; the spec itself if none are."""
    if not ignored:
        return spec
    fields = msgspec.to_builtins(spec)
    for path in ignored:
        _pop(fields, path.split("."))
    return fields


def carried(spec: VMSpec, ignored: tuple[str, ...], applied: VMSpec) -> VMSpec:
    """`spec` with the ignored paths as they were last applied."""
    fields, before = msgspec.to_builtins(spec), msgspec.to_builtins(applied)
    for path in ignored:
        steps = path.split(".")
        target, source = fields, before
        for step in steps[:-1]:
            target, source = target[step], source[step]
        target[steps[-1]] = source[steps[-1]]
    return msgspec.convert(fields, VMSpec)


def _pop(fields: dict[str, Any], steps: list[str]) -> None:
    for step in steps[:-1]:
        fields = fields[step]
    fields.pop(steps[-1])


def field_changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[FieldChange, ...]:
    """The fields in which two recordings differ, sorted by path."""
    return () if before == after else _named(_encode(before), _encode(after))


@lru_cache(maxsize=1024)
def _named(before: bytes, after: bytes) -> tuple[FieldChange, ...]:
    """The differences of two encoded recordings. VMs of a fleet mostly differ alike, and DeepDiff takes 0.7 ms."""
    from deepdiff import DeepDiff  # noqa: PLC0415 - 225 ms that a plan without differences need not pay

    tree = DeepDiff(msgspec.json.decode(before), msgspec.json.decode(after), view="tree", ignore_order=False)
    changes = [
        FieldChange(path=path, before=_absent(item.t1), after=_absent(item.t2), impact=impact_of(path))
        for group in tree.values()
        for item in group
        for path in [".".join(str(step) for step in item.path(output_format="list"))]
    ]
    return tuple(sorted(changes, key=lambda change: change.path))


def impact_of(path: str) -> Impact:
    """What changing the field at `path` costs; an unknown field of a newer record costs a restart."""
    return FIELDS[path].impact if path in FIELDS else "restart"


def _absent(value: Any) -> Any:
    return None if type(value).__name__ == "NotPresent" else value

"""The one table of what is recorded for a VM: the paths of fields by what changing them costs. In a path `*` stands for
a name that people chose, and `**` for all from there on. To add a field: docs/adding-a-field.md.
"""

from functools import lru_cache
from typing import Any

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM, Policy, State, VMSpec
from mikrom_reconcile.core.model.encoding import canonical_json, ready
from mikrom_reconcile.core.model.observed import Drift
from mikrom_reconcile.core.model.plan import FieldChange, Impact

_PATHS: dict[Impact, str] = {
    "record": """
        image boot.kernel.source boot.initrd.source boot.rootfs.source drives.*.on_delete checks.**
        restart.policy restart.attempts restart.interval restart.delay
        fleet state prune.max prune.allow_empty lifecycle.prevent_destroy
    """,
    "restart": """
        machine.vcpu_count machine.mem_size_mib machine.smt machine.cpu_template machine.huge_pages cpu_config.**
        boot.kernel.sha256 boot.initrd boot.initrd.sha256 boot.rootfs.size_mib boot.rootfs.init boot_args command env.**
        drives.* drives.*.size_mib drives.*.source drives.*.read_only drives.*.mount
        network_interfaces.* network_interfaces.*.network network_interfaces.*.cidr network_interfaces.*.gateway
        network_interfaces.*.pool network_interfaces.*.ip network_interfaces.*.mtu
        mmds mmds_config.imds_compat entropy vsock vsock.guest_cid
        balloon balloon.deflate_on_oom balloon.stats_polling_interval_s drives.*.is_root_device
    """,
    "live": """
        drives.*.rate_limiter.bandwidth_mbit drives.*.rate_limiter.ops
        network_interfaces.*.nat network_interfaces.*.guard network_interfaces.*.isolation
        network_interfaces.*.egress.** network_interfaces.*.host_access.** network_interfaces.*.publish.**
        network_interfaces.*.rate_limiter.bandwidth_mbit mmds.** balloon.amount_mib
    """,
    "replace": "boot boot.rootfs boot.rootfs.sha256 boot.rootfs.read_only",
}
"""Impacts as measured on Firecracker 1.12.1. Where a mapping appears or vanishes, its own path counts. An image is here
by its name: what that stands for is `boot`. A changed state is acted on by its own rules. The first match counts.
"""
FIELDS: dict[str, Impact] = {path: impact for impact, paths in _PATHS.items() for path in paths.split()}

RECORD = "record"  # the path of a VM's record itself, where it is not as it was written: an update writes it anew
# The bridge, and the tap on it, is no field, but what a host makes for one.
_IMPACTS: dict[str, Impact] = {**FIELDS, RECORD: "record", "network_interfaces.*.bridge": "live"}

_MEANT = {"image": ("image", "boot")}
"""Paths that stand for others, too: who ignores an image's name ignores what the name stands for."""


def costs(applied: VMSpec, wanted: VMSpec) -> frozenset[Impact]:
    """What it takes to bring a VM from one spec to another."""
    if applied == wanted:
        return frozenset()
    changes = field_changes(msgspec.to_builtins(applied), msgspec.to_builtins(wanted))
    return frozenset(change.impact for change in changes)


def needs_restart(applied: VMSpec, wanted: VMSpec) -> bool:
    """Whether the VMM has to go down for its spec to change so; the rest is recorded, or changed while it runs."""
    return not costs(applied, wanted).isdisjoint({"restart", "replace"})


def recorded(*, fleet: str, state: State, spec: VMSpec, policy: Policy) -> dict[str, Any]:
    """The recorded values of a VM by path, in the spec language's own words."""
    prune = {"max": policy.prune_max, "allow_empty": policy.allow_empty}
    lifecycle = {"prevent_destroy": bool(policy.prevent_destroy)}
    return {**msgspec.to_builtins(spec), "fleet": fleet, "state": state, "prune": prune, "lifecycle": lifecycle}


def drop_paths(spec: VMSpec, ignored: tuple[str, ...]) -> Any:
    """`spec` without the ignored paths, for digests; the spec itself if none are."""
    return _with_paths(spec, ignored, {}) if ignored else spec


def keep_applied(spec: VMSpec, ignored: tuple[str, ...], applied: VMSpec) -> VMSpec:
    """`spec` with the ignored paths as they were last applied."""
    return msgspec.convert(_with_paths(spec, ignored, msgspec.to_builtins(applied)), ready(VMSpec))


def _with_paths(spec: VMSpec, paths: tuple[str, ...], before: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(spec)
    for path in (meant for named in paths for meant in _MEANT.get(named, (named,))):
        *above, last = path.split(".")
        target, source = _inside(fields, above), _inside(before, above)
        if last in source:
            target[last] = source[last]
        else:
            target.pop(last, None)
    return fields


def _inside(fields: dict[str, Any], steps: list[str]) -> dict[str, Any]:
    """The mapping at the end of the steps; an empty one of nobody's where there is none."""
    for step in steps:
        found = fields.get(step)
        fields = found if isinstance(found, dict) else {}
    return fields


def counted_drift(drift: tuple[Drift, ...], desired: DesiredVM) -> tuple[Drift, ...]:
    """The drift that the spec does not ignore."""
    ignored = desired.ignore_changes + desired.ignore_drift
    return tuple(item for item in drift if item.path not in ignored)


def field_changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[FieldChange, ...]:
    """The fields in which two recordings differ, sorted by path."""
    same = {key for key in before if key in after and before[key] == after[key]}
    if len(same) == len(before) == len(after):
        return ()
    return _named(*(canonical_json({key: side[key] for key in side if key not in same}) for side in (before, after)))


@lru_cache(maxsize=1024)
def _named(before: bytes, after: bytes) -> tuple[FieldChange, ...]:
    """The differences of two encoded recordings. VMs mostly differ alike, and DeepDiff takes 0.7 ms."""
    from deepdiff import DeepDiff  # noqa: PLC0415 - 225 ms that a plan without differences need not pay

    tree = DeepDiff(msgspec.json.decode(before), msgspec.json.decode(after), view="tree", ignore_order=False)
    found = {".".join(map(str, item.path(output_format="list"))): item for group in tree.values() for item in group}
    sides = ((path, _absent(found[path].t1), _absent(found[path].t2)) for path in sorted(found))
    return tuple(FieldChange(path=path, before=was, after=now, impact=impact_of(path)) for path, was, now in sides)


@lru_cache(maxsize=1024)
def impact_of(path: str) -> Impact:
    """What changing the field at `path` costs; an unknown field of a newer record costs a restart."""
    return next((impact for row, impact in _IMPACTS.items() if is_row_of(row, path)), "restart")


def is_row_of(row: str, path: str) -> bool:
    """Whether the table's row `row` speaks of the field at `path`."""
    steps, pattern = path.split("."), row.split(".")
    if pattern[-1] == "**":
        pattern = pattern[:-1] + ["*"] * max(0, len(steps) - len(pattern) + 1)
    return len(steps) == len(pattern) and all(want in {"*", step} for want, step in zip(pattern, steps, strict=True))


def _absent(value: Any) -> Any:
    return None if type(value).__name__ == "NotPresent" else value

"""What a changed field costs, and what stays when its changes are ignored."""

from __future__ import annotations

import pytest

from mikrom_reconcile.core.model.desired import Boot, Machine, PinnedFile, Restart, VMSpec
from mikrom_reconcile.core.model.fields import drop_paths, field_changes, impact_of, keep_applied, needs_restart
from mikrom_reconcile.core.model.plan import FieldChange

KERNEL = PinnedFile(source="file:///k", sha256="0" * 64)

SPEC = VMSpec(image="hello", machine=Machine(vcpu_count=2, mem_size_mib=64), boot_args="a")


@pytest.mark.parametrize(
    ("wanted", "down"),
    [
        (SPEC, False),
        (VMSpec(image="other", machine=SPEC.machine, boot_args="a"), False),
        (VMSpec(image="hello", machine=SPEC.machine, boot_args="a", boot=Boot(kernel=KERNEL)), True),
        (VMSpec(image="hello", machine=SPEC.machine, boot_args="a", mmds={}), True),
        (VMSpec(image="hello", machine=Machine(vcpu_count=1, mem_size_mib=64), boot_args="a"), True),
        (VMSpec(image="hello", machine=Machine(vcpu_count=2, mem_size_mib=65), boot_args="a"), True),
        (VMSpec(image="hello", machine=SPEC.machine, boot_args="b"), True),
        (
            VMSpec(image="hello", machine=SPEC.machine, boot_args="a", restart=Restart(policy="never", delay="3s")),
            False,
        ),
    ],
)
def test_a_vmm_goes_down_only_for_what_it_knows_itself(wanted: VMSpec, *, down: bool) -> None:
    assert needs_restart(SPEC, wanted) is down
    assert needs_restart(wanted, SPEC) is down


def test_ignored_fields_are_no_part_of_the_digest_and_stay_as_they_were() -> None:
    assert drop_paths(SPEC, ()) is SPEC
    fewer = drop_paths(SPEC, ("machine.vcpu_count", "boot_args"))
    assert (fewer["machine"].keys() & {"vcpu_count", "mem_size_mib"}, "boot_args" in fewer) == ({"mem_size_mib"}, False)
    now = keep_applied(VMSpec(image="new", boot_args="b"), ("machine.vcpu_count", "boot_args"), SPEC)
    assert now == VMSpec(image="new", machine=Machine(vcpu_count=2, mem_size_mib=128), boot_args="a")


def test_what_is_ignored_need_not_be_there_on_either_side() -> None:
    with_role, without_it = (
        VMSpec(image="hello", mmds={"role": "web", "seen": 1}),
        VMSpec(image="hello", mmds={"seen": 2}),
    )
    assert keep_applied(with_role, ("mmds.role",), without_it).mmds == {"seen": 1}
    assert keep_applied(without_it, ("mmds.role",), with_role).mmds == {"role": "web", "seen": 2}
    assert drop_paths(without_it, ("mmds.role.name",))["mmds"] == {"seen": 2}


def test_who_ignores_an_image_ignores_what_it_stands_for() -> None:
    wanted = VMSpec(image="new", boot=Boot(kernel=KERNEL))
    assert keep_applied(wanted, ("image",), SPEC) == VMSpec(image="hello")
    assert not {"image", "boot"} & drop_paths(wanted, ("image",)).keys()


def test_a_field_that_only_one_side_knows_costs_what_an_unknown_field_costs() -> None:
    changes = field_changes({"image": "hello", "new": {"x": 1}}, {"image": "hello", "gone": 2, "new": {}})
    assert changes == (
        FieldChange(path="gone", before=None, after=2, impact="restart"),
        FieldChange(path="new.x", before=1, after=None, impact="restart"),
    )
    assert [impact_of(path) for path in ("prune.max", "drives.data", "mmds", "mmds.a.b", "mmds.a", "mmdsx.a")] == [
        "record", "restart", "restart", "live", "live", "restart",
    ]  # fmt: skip
    assert field_changes({"a": 1}, {"a": 1}) == ()

"""What is known of each release of Firecracker, and what is said of those that are too old or known to fail."""

from __future__ import annotations

from datetime import date

import pytest

from mikrom_reconcile.core.model.desired import Drive, MmdsConfig, NetworkInterface, VMSpec
from mikrom_reconcile.core.specs.releases import (
    RELEASES,
    jailer_problem,
    release_of,
    support_problem,
    version_in,
)
from mikrom_reconcile.core.specs.validate_vms import unsupported, unsupported_by

TODAY = date(2026, 11, 29)


@pytest.mark.parametrize(
    ("said", "line", "told"),
    [
        ("Firecracker v1.12.1", (1, 12), ("1.12.1: out of support since 2025-12-17", "use 1.15 or 1.16")),
        ("Firecracker v1.9.1", (1, 10), ("1.9.1: out of support for long", "use 1.15 or 1.16")),
        ("Firecracker v1.15.1", (1, 15), ("", "")),
        ("Firecracker v1.17.0-dev", (1, 16), ("", "")),
        ("something else", (1, 10), ("", "")),
    ],
)
def test_what_is_out_of_support_is_told_with_what_is_not(said: str, line: tuple[int, int], told: object) -> None:
    version = version_in(said)
    assert release_of(version).line == line
    assert support_problem(version, TODAY) == told


def test_a_release_is_in_support_until_the_day_it_is_not() -> None:
    assert support_problem((1, 14, 4), date(2026, 6, 2)) == ("", "")
    assert [release.line for release in RELEASES] == sorted(release.line for release in RELEASES)


@pytest.mark.parametrize(
    ("version", "cgroups", "fails"),
    [((1, 16, 0), 1, True), ((1, 16, 0), 2, False), ((1, 16, 1), 1, False), ((), 1, False)],
)
def test_a_jailer_that_is_known_to_fail_is_told(version: tuple[int, ...], cgroups: int, fails: bool) -> None:  # noqa: FBT001
    assert ("does not work with cgroups v1: use a later 1.16" in jailer_problem(version, cgroups)) == fails


def test_a_host_refuses_what_its_own_release_lacks() -> None:
    spec = VMSpec(image="hello", drives={f"d{number}": Drive(size_mib=1) for number in range(18)})
    assert unsupported(spec) is None
    assert unsupported_by((1, 12, 1), spec) is None
    assert "are 18; Firecracker takes 17 in 1.15.0" in str(unsupported_by((1, 15, 0), spec))


@pytest.mark.parametrize(
    ("version", "mtu", "refused"),
    [
        (
            (1, 12, 1),
            None,
            "mmds_config.imds_compat is there from Firecracker 1.13 on, and this is 1.12.1: leave it out",
        ),
        ((1, 13, 0), None, "None"),
        ((1, 15, 2), 1400, "network_interfaces.eth0.mtu is there from Firecracker 1.16 on, and this is 1.15.2"),
        ((1, 16, 1), 1400, "None"),
    ],
)
def test_a_field_that_a_release_does_not_know_is_refused_by_name(
    version: tuple[int, ...], mtu: int | None, refused: str
) -> None:
    nic = NetworkInterface(network="prod", mtu=mtu)
    spec = VMSpec(image="hello", mmds_config=MmdsConfig(imds_compat=True), network_interfaces={"eth0": nic})
    assert refused in str(unsupported_by(version, spec))

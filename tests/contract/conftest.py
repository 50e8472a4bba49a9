"""Each contract test runs once per driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import found_firecracker
from tests.contract.drivers import KINDS, Bench, JailBench, QemuBench, RealBench, SimulatedBench


@pytest.fixture
def real(own_environment: Path) -> Iterator[RealBench]:
    """Firecracker; who uses it carries the mark kvm."""
    binary = found_firecracker()
    assert binary is not None
    bench = RealBench(binary, own_environment)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def jailed(own_environment: Path) -> Iterator[JailBench]:
    """Firecracker in jails, as root with the jailer beside it; who uses it carries the marks kvm and jail."""
    binary = found_firecracker()
    assert binary is not None
    bench = JailBench(binary, own_environment)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def qemu(own_environment: Path) -> Iterator[QemuBench]:
    """QEMU; who uses it carries the mark needs."""
    binary = shutil.which("qemu-system-x86_64")
    assert binary is not None
    bench = QemuBench(binary, own_environment)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture(params=KINDS.values())
def bench(request: pytest.FixtureRequest, own_environment: Path) -> Bench:
    if request.param == "simulated":
        return SimulatedBench(own_environment)
    found: Bench = request.getfixturevalue(request.param)
    return found

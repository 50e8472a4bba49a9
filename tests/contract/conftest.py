"""Each contract test runs once per driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import firecrackers, found_firecracker
from tests.contract.drivers import KINDS, Bench, JailBench, QemuBench, RealBench, SimulatedBench


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With MIKROM_FIRECRACKERS=/a/firecracker:/b/firecracker each test of a Firecracker runs once with each."""
    if "firecracker" in metafunc.fixturenames and (binaries := firecrackers()):
        metafunc.parametrize("firecracker", binaries, indirect=True)


@pytest.fixture
def firecracker(request: pytest.FixtureRequest) -> str:
    """The binary of this run; "" where there is none."""
    return str(getattr(request, "param", found_firecracker() or ""))


@pytest.fixture
def real(own_environment: Path, firecracker: str) -> Iterator[RealBench]:
    """Firecracker; who uses it carries the mark kvm."""
    bench = RealBench(firecracker, own_environment)
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def jailed(own_environment: Path, firecracker: str) -> Iterator[JailBench]:
    """Firecracker in jails, as root with the jailer beside it; who uses it carries the marks kvm and jail."""
    bench = JailBench(firecracker, own_environment)
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
def bench(request: pytest.FixtureRequest, own_environment: Path, firecracker: str) -> Bench:
    if request.param not in {"real", "jailed"} and firecracker not in (firecrackers() or [firecracker])[:1]:
        pytest.skip("this is no Firecracker, and has run already")
    if request.param == "simulated":
        return SimulatedBench(own_environment)
    found: Bench = request.getfixturevalue(request.param)
    return found

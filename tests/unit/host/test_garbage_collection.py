"""What a host has of images: who uses it, what cannot be had, and what goes by itself."""

from __future__ import annotations

import hashlib
import os

import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Boot, PinnedFile, VMSpec
from mikrom_reconcile.core.model.observed import ObserveQuery
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.host.resources.provisioner import GarbageCollector
from tests.fakes import HOST, desired_vm, order
from tests.unit.host.conftest import VM, Host


@pytest.fixture
def images(host: Host) -> ImageCache:
    return ImageCache(host.path)


@pytest.fixture
def collector(host: Host, images: ImageCache) -> GarbageCollector:
    return GarbageCollector(HOST, images, host.records)


def pinned(host: Host, content: bytes) -> PinnedFile:
    path = host.path / "images" / content.decode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return PinnedFile(source=f"file://{path}", sha256=hashlib.sha256(content).hexdigest())


def fetched(images: ImageCache, *files: PinnedFile) -> None:
    assert images.fetch(files, deadline_s=5) == {}


def uses(host: Host, file: PinnedFile) -> None:
    desired = desired_vm(VM, VMSpec(image="web", boot=Boot(kernel=file)))
    assert host.execute(order("create", VM, desired=desired)).result == "done"


def age(images: ImageCache, *files: PinnedFile) -> None:
    for file in files:
        os.utime(images.path_of(file), (0, 0))


def test_it_tells_what_is_there_and_how_many_vms_use_it(host: Host, images: ImageCache) -> None:
    used, unused = pinned(host, b"used"), pinned(host, b"unused")
    uses(host, used)
    fetched(images, used, unused)
    there = host.agent.observe(ObserveQuery(images=True)).images
    assert {file.sha256: (file.size_bytes, file.vms) for file in there} == {
        used.sha256: (4, 1),
        unused.sha256: (6, 0),
    }
    assert host.agent.observe(ObserveQuery()).images == ()


def test_a_file_that_cannot_be_had_keeps_no_other_away_and_leaves_nothing(host: Host, images: ImageCache) -> None:
    good, bad = pinned(host, b"good"), replace(pinned(host, b"bad"), sha256="0" * 64)
    failed = images.fetch([bad, good], deadline_s=5)
    assert list(failed) == ["0" * 64]
    assert "the spec says 0000" in failed["0" * 64]
    assert [path.name for path in (host.path / "images/sha256").iterdir()] == [good.sha256]


def test_what_nobody_used_for_a_day_goes_and_what_a_vm_uses_stays(
    host: Host, collector: GarbageCollector, images: ImageCache
) -> None:
    used, unused, fresh = (pinned(host, content) for content in (b"used", b"unused", b"fresh"))
    uses(host, used)
    fetched(images, used, unused, fresh)
    age(images, used, unused)
    collector.run()
    assert {name for name, *_ in images.cached()} == {used.sha256, fresh.sha256}
    host.execute(order("delete", VM, host.agent.observe(ObserveQuery()).vms[0]))
    GarbageCollector(HOST, images, host.records).run()
    assert {name for name, *_ in images.cached()} == {used.sha256, fresh.sha256}, "a day has not passed since"


def test_nothing_goes_while_a_record_cannot_be_read(
    host: Host, collector: GarbageCollector, images: ImageCache
) -> None:
    used, unused = pinned(host, b"used"), pinned(host, b"unused")
    uses(host, used)
    fetched(images, used, unused)
    age(images, used, unused)
    for path in (host.path / "vms" / VM / "record.json", host.path / "copies" / f"{VM}.json"):
        path.write_bytes(b"nonsense")
    collector.run()
    assert {name for name, *_ in images.cached()} == {used.sha256, unused.sha256}


def test_a_sweep_comes_with_the_first_order_of_a_process_and_then_once_an_hour(host: Host, images: ImageCache) -> None:
    unused = pinned(host, b"unused")
    images.fetched(unused, give_up_at=float("inf"))
    age(images, unused)
    assert host.execute(order("create", VM)).result == "done"
    assert list(images.cached()) == []
    images.fetched(unused, give_up_at=float("inf"))
    age(images, unused)
    assert host.execute(order("create", "web-001")).result == "done"
    assert len(list(images.cached())) == 1

"""Layers that are made to do harm: each is refused by name, and writes nothing outside of its tree."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from mikrom_reconcile.host.oci import rootdisk
from mikrom_reconcile.host.oci.layers import Budget, apply
from mikrom_reconcile.host.oci.manifests import ContainerImage, Layer, Process
from mikrom_reconcile.host.oci.tree import Tree
from mikrom_reconcile.system.download import FetchError
from tests.full_disk import small_disk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root, which unpacking a container image takes")

MAX_BYTES = 64 << 20


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    return member, content


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in entries:
            archive.addfile(member, io.BytesIO(content) if content else None)
    return out.getvalue()


def layer(content: bytes, packed: bytes | None = None) -> Layer:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        yield io.BytesIO(content if packed is None else packed)

    return Layer(diff_id=f"sha256:{hashlib.sha256(content).hexdigest()}", opened=opened)


def fresh(folder: Path) -> Path:
    root = folder / "root"
    root.mkdir()
    return root


def applied(root: Path, *contents: bytes, max_bytes: int = MAX_BYTES) -> None:
    budget = Budget(max_bytes)
    with Tree(root) as target:
        for content in contents:
            apply(target, layer(content), budget)
        target.finish()


def device(kind: bytes) -> dict[str, Any]:
    return {"type": kind, "devmajor": 1, "devminor": 3}


REFUSED: dict[str, tuple[str, Callable[[Path], list[bytes]]]] = {
    "a name that climbs": ("climbs out", lambda _: [tar(entry("../evil", b"x"))]),
    "a name that climbs further in": ("climbs out", lambda _: [tar(entry("a/b/../../../evil", b"x"))]),
    "a folder that climbs": ("climbs out", lambda _: [tar(entry("../evil", type=tarfile.DIRTYPE))]),
    "links in a circle": (
        "Too many levels of symbolic links",
        lambda _: [
            tar(
                entry("a", type=tarfile.SYMTYPE, linkname="b"),
                entry("b", type=tarfile.SYMTYPE, linkname="a"),
                entry("a/evil", b"x"),
            )
        ],
    ),
    "a hard link that climbs": (
        "climbs out",
        lambda folder: [tar(entry("evil", type=tarfile.LNKTYPE, linkname=f"../..{folder}/outside/secret"))],
    ),
    "a hard link to this host": (
        "no file",
        lambda folder: [tar(entry("evil", type=tarfile.LNKTYPE, linkname=f"{folder}/outside/secret"))],
    ),
    "a hard link to a folder": (
        "no file",
        lambda _: [tar(entry("folder", type=tarfile.DIRTYPE), entry("evil", type=tarfile.LNKTYPE, linkname="folder"))],
    ),
    "a hard link to nothing": ("no file", lambda _: [tar(entry("evil", type=tarfile.LNKTYPE, linkname=""))]),
    "a whiteout of the folder above": ("whiteout of nothing", lambda _: [tar(entry("a/.wh...", b""))]),
    "a whiteout of no name": ("whiteout of nothing", lambda _: [tar(entry("a/.wh.", b""))]),
    "a file as a folder": ("Not a directory", lambda _: [tar(entry("a", b"x"), entry("a/b", b"x"))]),
    "a device as a folder": (
        "Not a directory",
        lambda _: [tar(entry("a", **device(tarfile.CHRTYPE)), entry("a/b", b"x"))],
    ),
    "a root that is a file": ("has to be a folder", lambda _: [tar(entry("./", b"x"))]),
    "an owner that is none": ("owner", lambda _: [tar(entry("a", b"x", uid=-1))]),
    "a time that is none": ("time", lambda _: [tar(entry("a", b"x", pax_headers={"mtime": "soon"}))]),
    "an unknown kind": ("unknown kind", lambda _: [tar(entry("a", type=b"Z"))]),
    "a name too long for a file": ("File name too long", lambda _: [tar(entry("n" * 256, b"x"))]),
    "a path too long": ("too long", lambda _: [tar(entry("/".join(["n" * 250] * 17), b"x"))]),
    "a path too deep": ("folders deep", lambda _: [tar(entry("d/" * 201 + "x", b"x"))]),
    "a path too deep through a link": (
        "folders deep",
        lambda _: [
            tar(
                entry("d/" * 150, type=tarfile.DIRTYPE),
                entry("link", type=tarfile.SYMTYPE, linkname="d/" * 150),
                entry("link/" + "e/" * 60 + "x", b"x"),
            )
        ],
    ),
    "a tar that is none": ("tar is broken", lambda _: [b"no tar" * 200]),
    "a tar that is cut off": ("tar is broken", lambda _: [tar(entry("a", b"x" * 5000))[:3000]]),
    "a tar with a broken header": ("tar is broken", lambda _: [tar(entry("a", b"x"))[:1024] + b"\x01" * 512]),
    "headers without end": ("of headers", lambda _: [tar(entry("a", pax_headers={"comment": "x" * (3 << 20)}))]),
    "holes without end": ("of headers", lambda _: [gnu_sparse(extended=9000)]),
    "holes that go back": ("holes that make no sense", lambda _: [gnu_sparse(map_=((4096, 512), (0, 512)))]),
    "a hole larger than all": ("more than 64 MiB", lambda _: [gnu_sparse(size=1 << 40, map_=((0, 512),))]),
}


def gnu_sparse(*, size: int = 8192, map_: tuple[tuple[int, int], ...] = (), extended: int = 0) -> bytes:
    """A sparse file as GNU tar writes it, with blocks of holes behind its header."""
    header = bytearray(tarfile.TarInfo("sparse").tobuf(tarfile.GNU_FORMAT)[:512])
    header[156:157] = b"S"
    header[124:136] = b"%011o\0" % (512 * len(map_))
    for number, (start, length) in enumerate(map_[:4]):
        header[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (start, length)
    header[482] = 1 if extended else 0
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = b"".join(b"%011o\0%011o\0" % (512 * at, 0) for at in range(21)) + b"\1" + bytes(7)
    return bytes(header) + block * extended + b"x" * 512 * len(map_) + bytes(1024)


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_does_harm_is_refused(name: str, tmp_path: Path) -> None:
    message, contents = REFUSED[name]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = fresh(tmp_path)
    with pytest.raises(FetchError, match=message) as caught:
        applied(root, *contents(tmp_path))
    assert caught.value.lasting
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root"]
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert not (tmp_path.parent / "evil").exists()
    assert not Path("/evil").exists()


def test_an_absolute_link_leads_into_the_tree_and_not_to_this_host(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = fresh(tmp_path)
    applied(root, tar(entry("link", type=tarfile.SYMTYPE, linkname=str(outside)), entry("link/evil", b"x")))
    assert not list(outside.iterdir())
    assert (root / outside.relative_to("/") / "evil").read_bytes() == b"x"


def test_a_link_that_climbs_ends_at_the_top_of_the_tree(tmp_path: Path) -> None:
    root = fresh(tmp_path)
    up = tar(entry("a/up", type=tarfile.SYMTYPE, linkname="../../../.."), entry("a/up/one", b"x"))
    applied(root, up, tar(entry("a/up/two", b"x"), entry("a/up/a/up/new/three", b"x")))
    assert {path.name for path in root.iterdir()} == {"a", "one", "two", "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_file_takes_the_place_of_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    root = fresh(tmp_path)
    applied(root, tar(entry("link", type=tarfile.SYMTYPE, linkname=str(target)), entry("link", b"theirs")))
    assert target.read_text() == "mine"
    assert (root / "link").read_text() == "theirs"


def test_a_link_to_where_a_path_leads_may_be_removed_under_it(tmp_path: Path) -> None:
    root = fresh(tmp_path)
    first = tar(entry("real/x", b"1"), entry("way", type=tarfile.SYMTYPE, linkname="real"))
    applied(root, first, tar(entry("way/a", b"a"), entry(".wh.way"), entry("way/b", b"b")))
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == [
        "real",
        "real/a",
        "real/x",
        "way",
        "way/b",
    ]


def test_too_many_bytes_are_refused_while_they_are_unpacked(tmp_path: Path) -> None:
    content = tar(entry("zeros", bytes(4 << 20)))
    root = fresh(tmp_path)
    bomb = layer(content, packed=gzip.compress(content))
    with Tree(root) as target, pytest.raises(FetchError, match="more than 1 MiB"):
        apply(target, bomb, Budget(1 << 20))
    assert (root / "zeros").stat().st_size <= 1 << 20


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    budget = Budget(MAX_BYTES, entries=10)
    with Tree(fresh(tmp_path)) as target:
        apply(target, layer(tar(*(entry(str(number)) for number in range(6)))), budget)
        with pytest.raises(FetchError, match="more than 10 files"):
            apply(target, layer(tar(*(entry("x") for _ in range(5)))), budget)


def test_a_layer_that_is_not_what_its_image_says_is_refused(tmp_path: Path) -> None:
    told = layer(tar(entry("a", b"x")), packed=tar(entry("a", b"y")))
    with Tree(fresh(tmp_path)) as target, pytest.raises(FetchError, match="its digest is sha256:"):
        apply(target, told, Budget(MAX_BYTES))


@pytest.mark.needs("zstd")
@pytest.mark.parametrize("packed", [b"\x1f\x8b\x08" + b"x" * 100, b"\x28\xb5\x2f\xfd" + b"x" * 100])
def test_a_layer_that_is_badly_packed_is_refused(packed: bytes, tmp_path: Path) -> None:
    (tmp_path / "layer").write_bytes(packed)
    told = Layer(diff_id="sha256:", opened=lambda: (tmp_path / "layer").open("rb"))
    with Tree(fresh(tmp_path)) as target, pytest.raises(FetchError, match="broken"):
        apply(target, told, Budget(MAX_BYTES))


def test_a_cut_off_gzip_is_refused(tmp_path: Path) -> None:
    content = tar(entry("a", os.urandom(100_000)))
    told = layer(content, packed=gzip.compress(content)[:50_000])
    with Tree(fresh(tmp_path)) as target, pytest.raises(FetchError, match="ends too early"):
        apply(target, told, Budget(MAX_BYTES))


@pytest.mark.needs("mke2fs")
@pytest.mark.parametrize(
    ("process", "content", "message"),
    [
        (Process(entrypoint=("x",)), tar(entry("../evil", b"x")), "layer 1 of 1: '../evil': it climbs out"),
        (Process(cmd=("x",), user="nobody"), tar(entry("a", b"x")), "USER is nobody"),
        (Process(cmd=("x\0y",)), tar(entry("a", b"x")), "zero byte"),
        (Process(cmd=("x",), stop_signal="SIGNOTHING"), tar(entry("a", b"x")), "STOPSIGNAL SIGNOTHING"),
    ],
)
def test_nothing_is_left_of_a_disk_that_cannot_be_made(
    process: Process, content: bytes, message: str, tmp_path: Path
) -> None:
    image = ContainerImage(process=process, layers=(layer(content),))
    with pytest.raises(FetchError, match=message):
        rootdisk.build(image, tmp_path / "disk", max_bytes=MAX_BYTES, give_up_at=time.monotonic() + 60)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    image = ContainerImage(process=Process(cmd=("x",)), layers=(layer(tar(entry("a", b"x"))),))
    with pytest.raises(FetchError, match="no more time") as caught:
        rootdisk.build(image, tmp_path / "disk", max_bytes=MAX_BYTES, give_up_at=time.monotonic() - 1)
    assert not caught.value.lasting
    assert not list(tmp_path.iterdir())


def test_a_host_without_mke2fs_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootdisk, "_SEARCHED", str(tmp_path))
    image = ContainerImage(process=Process(cmd=("x",)), layers=(layer(tar(entry("a", b"x"))),))
    with pytest.raises(FetchError, match="install e2fsprogs"):
        rootdisk.build(image, tmp_path / "disk", max_bytes=MAX_BYTES, give_up_at=time.monotonic() + 60)
    assert not list(tmp_path.iterdir())


@pytest.mark.needs("mke2fs")
def test_nothing_is_left_on_a_disk_that_is_too_small(tmp_path: Path) -> None:
    image = ContainerImage(process=Process(cmd=("x",)), layers=(layer(tar(entry("a", os.urandom(2 << 20)))),))
    for kib in (1024, 3072):  # too small for the tree, and for a disk of it
        with small_disk(tmp_path / "small", kib=kib):
            path = tmp_path / "small/disk"
            with pytest.raises((FetchError, OSError), match=r"No space left|mke2fs failed") as caught:
                rootdisk.build(image, path, max_bytes=MAX_BYTES, give_up_at=time.monotonic() + 60)
            assert not getattr(caught.value, "lasting", False)
            assert not list(path.parent.iterdir())

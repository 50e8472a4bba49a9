"""Every parser of bytes that come from elsewhere, and the errors that are its own."""

from __future__ import annotations

import atexit
import hashlib
import io
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec
import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control import run_log
from mikrom_reconcile.control.sources.last_good import Good
from mikrom_reconcile.core.model.desired import Check, NetworkInterface, PinnedFile, Policy
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import HostReport, Placements
from mikrom_reconcile.core.model.plan import ActionOutcome, Plan, RunRequest
from mikrom_reconcile.core.placement.desired_state import validate_specs
from mikrom_reconcile.core.specs.images import ARCHIVE
from mikrom_reconcile.dispatch.transport import order_envelope, rpc
from mikrom_reconcile.host.checks import tried
from mikrom_reconcile.host.drivers import firecracker_config
from mikrom_reconcile.host.drivers.connection import QMP, Connection, FirecrackerAPI
from mikrom_reconcile.host.errors import VMMError
from mikrom_reconcile.host.oci import manifests, rootdisk, sources, unpack
from mikrom_reconcile.host.oci.layers import Budget, apply
from mikrom_reconcile.host.oci.manifests import Layer
from mikrom_reconcile.host.oci.sources import registry_of
from mikrom_reconcile.host.oci.tree import Tree
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.system import netlink
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.system.https_source import opened
from tests.fakes import SPEC
from tests.scratch import SCRATCH

MOST_BYTES = 1 << 22
VM = "web-000"


T = TypeVar("T", bound=Connection)


class Parser(NamedTuple):
    """What takes the bytes, and what it may raise: what else comes out of it is a fault."""

    take: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    tries: int = 150


@cache
def folder() -> Path:
    """Of this process, gone with it."""
    path = Path(tempfile.mkdtemp(prefix="mk-fuzz-", dir=SCRATCH))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def file_of(content: bytes) -> Path:
    path = folder() / "file"
    path.write_bytes(content)
    return path


# ---- what images are made of


def manifest(content: bytes) -> None:
    document = manifests.document_of(content)
    if document.config is None:
        assert manifests.manifest_in(document).sha256
        return
    assert document.config.sha256
    manifests.layers_of(document)


def layer(content: bytes) -> None:
    """Unpacked into a tree, with the digest that it has, so that the digest is no reason to refuse it."""

    @contextmanager
    def packed() -> Iterator[BinaryIO]:
        yield io.BytesIO(content)

    root = folder() / "tree"
    root.mkdir()
    try:
        with Tree(root) as tree:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            apply(tree, Layer(diff_id=digest, opened=packed), Budget(MOST_BYTES))
            tree.finish()
    finally:
        shutil.rmtree(root)


def saved_image(content: bytes) -> None:
    archive = file_of(content)
    pinned = PinnedFile(source=f"{ARCHIVE}file://{archive}", sha256="0" * 64)
    image = sources.image_of(pinned, lambda *_: archive, no_registry, max_bytes=MOST_BYTES)
    for each in image.layers:
        with each.opened() as packed:
            packed.read(100)


def no_registry(name: str) -> Any:
    raise AssertionError(name)


def passwd(content: bytes) -> None:
    root = folder() / "rootdisk"
    for name in ("passwd", "group"):
        (root / "etc").mkdir(parents=True, exist_ok=True)
        (root / "etc" / name).write_bytes(content)
    with Tree(root) as tree:
        for user in ("web", "web:www", "12:34", ""):
            rootdisk._user(user, tree)


def zstd_frame(content: bytes) -> None:
    with file_of(content).open("rb") as packed, unpack.unpacked("zstd", packed) as unpacked:
        while unpacked.read(1 << 16):
            pass


def run_file(content: bytes) -> None:
    layers = len(manifests.decoded(content, manifests.Config).rootfs.diff_ids)
    config = manifests.config_of(content, layers)
    for digest in config.rootfs.diff_ids:
        assert isinstance(digest, str)
    assert config.config is None or config.config.words is not None


# ---- what a host hears


@contextmanager
def at_socket(kind: type[T], content: bytes) -> Iterator[T]:
    """A connection whose other end says this, and then nothing more."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(0.0)
        with suppress(BlockingIOError):
            theirs.send(content)
        theirs.shutdown(socket.SHUT_WR)
        connection = object.__new__(kind)
        connection._socket, connection._give_up_at = ours, time.monotonic() + 5.0
        yield connection


def firecracker(content: bytes) -> None:
    with at_socket(FirecrackerAPI, content) as api:
        config = api.get("/vm/config", firecracker_config.Config)
    for drive in config.drives:
        firecracker_config.disk_of(drive)
    for nic in config.network_interfaces:
        firecracker_config.interface_of(nic)


def metadata(content: bytes) -> None:
    with at_socket(FirecrackerAPI, content) as api:
        api.get("/mmds", dict[str, Any])


def qmp(content: bytes) -> None:
    with at_socket(QMP, content) as monitor:
        monitor._greet()
        monitor.execute("query-status", dict[str, Any])


def netlink_dump(content: bytes) -> None:
    for _, _, payload in netlink._messages(content, 1):
        netlink._parsed(payload)
        netlink._attributes(payload)


def record(content: bytes) -> None:
    state_dir = folder() / "state"
    for path in (state_dir / "vms" / VM / "record.json", state_dir / "copies" / f"{VM}.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    records = Records(state_dir)
    list(records.list())
    records.read(VM)
    records.tombstone(VM)
    records.attempts()


class Listener:
    """Answers each request with the same bytes, and closes."""

    def __init__(self) -> None:
        self.content = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with suppress(OSError), connection:
                connection.recv(1 << 16)
                connection.sendall(self.content)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(1.0)
                while connection.recv(1 << 16):
                    pass


listener = cache(Listener)


def check_answer(content: bytes) -> None:
    listener().content = content
    spec = msgspec.structs.replace(SPEC, network_interfaces={"eth0": NetworkInterface(network="lan")})
    record = msgspec.structs.replace(vm_record(), spec=spec, addresses={"eth0": "127.0.0.1"})
    check = Check(type="http", port=listener().port, timeout="5s")
    assert isinstance(tried(check, record, lambda _: b""), str)


def vm_record() -> VMRecord:
    return VMRecord(
        vm=VM,
        uid="u1",
        project="shop",
        fleet="web",
        state="running",
        spec=SPEC,
        policy=Policy(),
        spec_digest="1:0",
        generation=1,
        token=1,
        action_id="1:a",
        created_at=datetime(2026, 11, 29, tzinfo=UTC),
    )


@contextmanager
def nobody_but_this_machine() -> Iterator[None]:
    """Whatever an answer leads to, no name is looked up, and no other machine is asked."""
    found = socket.getaddrinfo

    def here(host: Any, *more: Any, **options: Any) -> Any:
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "not in a test")
        return found(host, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", here)
        yield


def download(content: bytes) -> None:
    listener().content = content
    give_up_at = time.monotonic() + 5.0
    with (
        nobody_but_this_machine(),
        opened(f"http://127.0.0.1:{listener().port}/image", offset=0, give_up_at=give_up_at) as answer,
    ):
        for _ in answer.pieces(give_up_at):
            pass


def registry(content: bytes) -> None:
    listener().content = content
    image = f"127.0.0.1:{listener().port}/library/web:1"
    with nobody_but_this_machine():
        registry_of(image, None, {}).digest_of(image, give_up_at=time.monotonic() + 5.0)


# ---- what comes over Redis, and from people


def order_sent(content: bytes) -> None:
    sent = order_envelope.OrderEnvelope(call="c", order=content.decode(errors="replace"))
    order_envelope.refused(sent, "create", "hv1", "as a test")
    order_envelope.read_order(sent, lambda: True)


def message(kind: type[object], content: bytes) -> None:
    rpc.unpack(content, kind)


def run_kept(content: bytes) -> None:
    run_log.unpacked("run", content, 0.0)
    decoded(content, Placements)


def specs(content: bytes) -> None:
    text = content.decode(errors="replace")
    validate_specs(SourceTree(revision="r", files=(SourceFile(path="web.yml", text=text),)), wiring.schemas(), here="h")


PARSERS: dict[str, Parser] = {
    "manifest": Parser(manifest, (FetchError,)),
    "config": Parser(run_file, (FetchError,)),
    "saved_image": Parser(saved_image, (FetchError,)),
    "passwd": Parser(passwd, (FetchError,)),
    "firecracker": Parser(firecracker, (VMMError,)),
    "mmds": Parser(metadata, (VMMError,)),
    "qmp": Parser(qmp, (VMMError,)),
    "netlink": Parser(netlink_dump, (OSError,)),
    "record": Parser(record, (MikromError,)),
    "check": Parser(check_answer, ()),
    "download": Parser(download, (FetchError,), tries=60),
    "registry": Parser(registry, (FetchError,), tries=60),
    "order": Parser(order_sent, (MikromError,)),
    "report": Parser(partial(message, HostReport), (MikromError,)),
    "outcome": Parser(partial(message, ActionOutcome), (MikromError,)),
    "request": Parser(partial(message, RunRequest), (MikromError,)),
    "plan": Parser(partial(message, Plan), (MikromError,)),
    "good": Parser(partial(message, Good), (MikromError,)),
    "run_kept": Parser(run_kept, ()),
    "specs": Parser(specs, (MikromError,), tries=40),
}
if os.geteuid() == 0:  # unpacking a container image takes root
    PARSERS["layer"] = Parser(layer, (FetchError, OSError), tries=60)
if shutil.which("zstd") and shutil.which("lz4"):
    PARSERS["bzimage"] = Parser(unpack.kernel_in, (FetchError,), tries=50)
    PARSERS["zstd"] = Parser(zstd_frame, (FetchError,), tries=20)

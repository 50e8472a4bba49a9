"""ImageCache on a host: whole, what their digest says, fetched once, and resumed where a server stopped."""

from __future__ import annotations

import datetime as dt
import hashlib
import http.server
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.system.download import FetchError

CONTENT = os.urandom(3 << 20)


def pinned(source: str, content: bytes = CONTENT) -> PinnedFile:
    return PinnedFile(source=source, sha256=hashlib.sha256(content).hexdigest())


def soon() -> float:
    return time.monotonic() + 10


class Server:
    """A web server with TLS that serves CONTENT; `stop_after` bytes it breaks off, `redirect` sends elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.stop_after: int | None = None
        self.drips_s = 0.0
        self.redirect = ""
        self.status = 200
        self.asked: list[str | None] = []
        handler = type("Handler", (_Handler,), {"server_of": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate(folder))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that do not trust it
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"https://localhost:{self._server.server_port}/disk"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server_of: Server

    def do_GET(self) -> None:
        server, wanted = self.server_of, self.headers.get("Range")
        server.asked.append(wanted)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if server.status != 200 or begin >= len(CONTENT):
            self.send_error(416 if begin >= len(CONTENT) else server.status)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        if server.drips_s:
            with suppress(OSError):  # its reader had enough
                for at in range(begin, begin + 200):
                    self.wfile.write(CONTENT[at : at + 1])
                    time.sleep(server.drips_s)
            return
        self.wfile.write(CONTENT[begin:][: server.stop_after])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def certificate(folder: Path) -> Path:
    """A certificate of localhost with its key, good for an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(serialization.Encoding.PEM, form, plain)
    )
    return path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
    yield found
    found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "disk").write_bytes(CONTENT)
    return allowed


@pytest.fixture
def images(tmp_path: Path, folder: Path) -> ImageCache:
    return ImageCache(tmp_path / "state", folders=(folder,), max_mib=4)


def test_a_file_is_copied_once_and_nobody_can_change_it(images: ImageCache, folder: Path) -> None:
    file = pinned(f"file://{folder}/disk")
    path = images.fetched(file, give_up_at=soon())
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o444
    (folder / "disk").write_bytes(b"changed later")
    assert images.fetched(file, give_up_at=soon()) == path
    assert path.read_bytes() == CONTENT


def test_what_is_not_what_the_spec_says_never_gets_its_name(images: ImageCache, folder: Path) -> None:
    file = PinnedFile(source=f"file://{folder}/disk", sha256="0" * 64)
    with pytest.raises(
        FetchError, match=f"its sha256 is {hashlib.sha256(CONTENT).hexdigest()}, and the spec says"
    ) as no:
        images.fetched(file, give_up_at=soon())
    assert no.value.lasting
    assert list(images.cached()) == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../secret", "is not below"),
        ("x/../../secret", "is not below"),
        ("link", "symlink is not followed"),
        ("linked/disk", "symlink is not followed"),
        ("nowhere", "No such file"),
        ("pipe", "not a regular file"),
        ("", "not a regular file"),
    ],
)
def test_a_path_leads_nowhere_else(images: ImageCache, folder: Path, path: str, why: str) -> None:
    (folder.parent / "secret").write_bytes(CONTENT)
    (folder / "link").symlink_to("../secret")
    (folder / "linked").symlink_to(".")
    os.mkfifo(folder / "pipe")
    with pytest.raises(FetchError, match=why) as no:
        images.fetched(pinned(f"file://{folder}/{path}"), give_up_at=soon())
    assert no.value.lasting


def test_what_a_server_began_to_send_is_not_sent_twice(images: ImageCache, server: Server) -> None:
    server.stop_after = 1_000_000
    with pytest.raises(FetchError, match="goes on from there") as no:
        images.fetched(pinned(server.url), give_up_at=soon())
    assert not no.value.lasting
    server.stop_after = None
    assert images.fetched(pinned(server.url), give_up_at=soon()).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-"]


def test_a_fetch_that_was_killed_before_its_last_step_ends_all_the_same(images: ImageCache, server: Server) -> None:
    draft = images.path_of(pinned(server.url)).with_name(f"{pinned(server.url).sha256}.part")
    draft.parent.mkdir(parents=True)
    draft.write_bytes(CONTENT)
    assert images.fetched(pinned(server.url), give_up_at=soon()).read_bytes() == CONTENT


@pytest.mark.parametrize(("status", "lasting"), [(404, True), (403, True), (503, False), (500, False)])
def test_what_a_server_refuses_is_told(images: ImageCache, server: Server, status: int, *, lasting: bool) -> None:
    server.status = status
    with pytest.raises(FetchError, match=f"{server.url}: the server answers {status}") as no:
        images.fetched(pinned(server.url), give_up_at=soon())
    assert no.value.lasting is lasting


def test_a_redirect_away_from_https_is_not_followed(images: ImageCache, server: Server) -> None:
    server.redirect = "http://localhost/disk"
    with pytest.raises(FetchError, match="which is not https") as no:
        images.fetched(pinned(server.url), give_up_at=soon())
    assert no.value.lasting


def test_a_server_with_a_strange_certificate_is_not_believed(
    images: ImageCache, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED") as no:
        images.fetched(pinned(server.url), give_up_at=soon())
    assert no.value.lasting


def test_a_server_that_sends_a_byte_at_a_time_has_until_the_deadline(images: ImageCache, server: Server) -> None:
    server.drips_s = 0.1
    with pytest.raises(FetchError, match="the next attempt goes on from there") as failed:
        images.fetched(pinned(server.url), give_up_at=time.monotonic() + 0.7)
    assert not failed.value.lasting
    server.drips_s = 0
    assert images.fetched(pinned(server.url), give_up_at=soon()).read_bytes() == CONTENT
    assert server.asked[0] is None
    assert server.asked[1] is not None  # what came was kept


def test_a_name_that_no_resolver_answers_for_has_until_the_deadline(
    images: ImageCache, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(60) and [])
        with pytest.raises(FetchError, match="no connection: timed out") as no:
            images.fetched(pinned(server.url), give_up_at=time.monotonic() + 0.2)
        assert not answered.is_set()
        answered.set()
    assert not no.value.lasting
    assert images.fetched(pinned(server.url), give_up_at=soon()).read_bytes() == CONTENT


def test_nobody_listens(images: ImageCache) -> None:
    with pytest.raises(FetchError, match="no connection") as no:
        images.fetched(pinned("https://localhost:1/disk"), give_up_at=soon())
    assert not no.value.lasting


def test_an_image_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path, folder: Path) -> None:
    images = ImageCache(tmp_path / "state", folders=(folder,), max_mib=2)
    with pytest.raises(FetchError, match="it has 3 MiB or more, and MIKROM_IMAGE_MAX_MIB is 2"):
        images.fetched(pinned(f"file://{folder}/disk"), give_up_at=soon())


def test_a_disk_that_is_too_full_is_told_with_numbers(
    images: ImageCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((4096, 4096, 100, 100, 100, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(FetchError, match=r"it needs 4 MiB and 0 are left in .*/images/sha256") as no:
        images.fetched(pinned(f"file://{folder}/disk"), give_up_at=soon())
    assert not no.value.lasting


def test_many_who_want_it_at_once_fetch_it_once(images: ImageCache, server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: images.fetched(pinned(server.url), give_up_at=soon()), range(8)))
    assert len(paths) == 1
    assert server.asked == [None]


def test_what_no_vm_uses_goes_after_a_day(images: ImageCache, folder: Path) -> None:
    (folder / "other").write_bytes(b"other")
    used, unused = pinned(f"file://{folder}/disk"), pinned(f"file://{folder}/other", b"other")
    for file in (used, unused):
        old = images.fetched(file, give_up_at=soon())
        os.utime(old, (0, 0))
    assert images.sweep(frozenset({used.sha256})) == (unused.sha256,)
    assert images.sweep(frozenset()) == (), "a day has to pass since it was used"
    assert [name for name, _, _ in images.cached()] == [used.sha256]
    images.fetched(unused, give_up_at=soon())
    assert images.sweep(frozenset({used.sha256})) == ()

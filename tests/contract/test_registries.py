"""Container images from registries: a real one, with each way to be let in, and one that behaves badly."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.host.oci.manifests import INDEXES, MANIFESTS
from mikrom_reconcile.host.oci.sources import Registry, image_of, registry_of
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.system.download import FetchError
from tests.container_images import Workshop, a_program, run
from tests.registries import BASIC, Server, TokenService, docker_registry, send

MAX_BYTES = 1 << 30


@pytest.fixture
def layout(tmp_path: Path) -> Workshop:
    workshop = Workshop(tmp_path / "workshop")
    workshop.folder.mkdir()
    a_program(workshop)
    return workshop


class Parts:
    """The parts of images in a folder, fetched by the cache of a host."""

    def __init__(self, folder: Path, patience_s: float = 20.0) -> None:
        self._patience_s = patience_s
        self.cache = ImageCache(folder / "state", max_mib=4)
        self.folder = folder / "state/images/parts"

    def fetch(self, file: PinnedFile, registry: Registry | None) -> Path:
        return self.cache.part(file, registry, give_up_at=time.monotonic() + self._patience_s)


def registries(auth_file: Path | None, mirrors: dict[str, str] | None = None) -> Callable[[str], Registry]:
    return lambda image: registry_of(image, auth_file, mirrors or {})


def read(
    parts: Parts,
    repository: str,
    sha256: str,
    credentials: str | None = None,
    mirrors: dict[str, str] | None = None,
) -> int:
    """How many layers an image has."""
    auth_file = None
    if credentials is not None:
        auth_file = parts.folder.parents[2] / "auth.json"
        auth_file.parent.mkdir(exist_ok=True)
        coded = base64.b64encode(credentials.encode()).decode()
        auth_file.write_text(json.dumps({"auths": {repository.partition("/")[0]: {"auth": coded}}}))
    file = PinnedFile(source=f"oci:{repository}", sha256=sha256)
    return len(image_of(file, parts.fetch, registries(auth_file, mirrors), max_bytes=MAX_BYTES).layers)


def pushed(layout: Workshop, address: str, *words: str) -> None:
    run(
        "skopeo", "copy", "--dest-tls-verify=false", *words, f"oci:{layout.layout}:it", f"docker://{address}/team/app:1"
    )


needs_tools = pytest.mark.needs("docker-registry", "skopeo", "umoci")


@needs_tools
def test_an_image_comes_from_a_registry_that_anybody_may_read(layout: Workshop, tmp_path: Path) -> None:
    with docker_registry(tmp_path) as address:
        pushed(layout, address)
        assert read(Parts(tmp_path), f"{address}/team/app", layout.digest()) == 1
        with pytest.raises(FetchError, match="404"):
            read(Parts(tmp_path / "other"), f"{address}/team/app", "0" * 64)
        mirrors = {"registry.example": address}
        assert read(Parts(tmp_path / "mirrored"), "registry.example/team/app:2", layout.digest(), mirrors=mirrors) == 1


@needs_tools
def test_a_registry_lets_in_by_name_and_password(layout: Workshop, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(BASIC + "\n")
    with docker_registry(tmp_path, f"auth: {{htpasswd: {{realm: x, path: {tmp_path}/htpasswd}}}}\n") as address:
        pushed(layout, address, "--dest-creds", "someone:secret")
        assert read(Parts(tmp_path), f"{address}/team/app", layout.digest(), "someone:secret") == 1
        for wrong in (None, "someone:wrong"):
            with pytest.raises(FetchError, match=r"does not let .* credentials read it") as caught:
                read(Parts(tmp_path / "other"), f"{address}/team/app", layout.digest(), wrong)
            assert caught.value.lasting
            assert "secret" not in str(caught.value)


@needs_tools
def test_a_registry_lets_in_by_a_token_of_another_service(layout: Workshop, tmp_path: Path) -> None:
    tokens = TokenService(tmp_path)
    try:
        with docker_registry(tmp_path, tokens.auth) as address:
            pushed(layout, address, "--dest-creds", "someone:secret")
            tokens.asked.clear()
            assert read(Parts(tmp_path), f"{address}/team/app", layout.digest(), "someone:secret") == 1
            assert [query["scope"] for _, query in tokens.asked] == [["repository:team/app:pull"]], "once for all parts"
            with pytest.raises(FetchError, match="does not let anybody without credentials read it"):
                read(Parts(tmp_path / "other"), f"{address}/team/app", layout.digest())
    finally:
        tokens.server.close()


LAYER = os.urandom(300_000)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def descriptor(content: bytes, kind: str, **more: object) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{digest(content)}", "size": len(content), **more}


def config(architecture: str = "amd64", layers: int = 1) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest(LAYER)}"] * layers}
    return json.dumps({"architecture": architecture, "os": "linux", "rootfs": rootfs}).encode()


def manifest(of: bytes, kind: str = "application/vnd.oci.image.layer.v1.tar", layers: int = 1) -> bytes:
    told = {
        "schemaVersion": 2,
        "mediaType": MANIFESTS[0],
        "config": descriptor(of, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(LAYER, kind)] * layers,
    }
    return json.dumps(told).encode()


def index(of: bytes, *platforms: str) -> bytes:
    found = [
        descriptor(of, MANIFESTS[0], platform={"os": name.partition("/")[0], "architecture": name.partition("/")[2]})
        for name in platforms
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": found}).encode()


class Bad:
    """A registry that has `documents`, and answers for the layer as `layer` says."""

    def __init__(self, *documents: bytes) -> None:
        self.documents = {digest(document): document for document in documents}
        self.layer: Callable[[http.server.BaseHTTPRequestHandler], None] = lambda request: send(request, LAYER)
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.challenge = ""
        self.server = Server(self._answer)
        self.repository = f"{self.server.address}/team/app"

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append((request.path, request.headers.get("Range"), request.headers.get("Authorization")))
        wanted = request.path.rpartition("sha256:")[2]
        if self.challenge and not request.headers.get("Authorization"):
            request.send_response(401)
            request.send_header("WWW-Authenticate", self.challenge)
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif wanted == digest(LAYER):
            self.layer(request)
        elif wanted in self.documents:
            send(request, self.documents[wanted])
        else:
            send(request, b"", 404)


@pytest.fixture
def bad() -> Iterator[Bad]:
    found = Bad(config(), manifest(config()))
    yield found
    found.server.close()


WHOLE = digest(manifest(config()))


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ((index(manifest(config()), "linux/arm64", "linux/s390x"),), "not there for linux/amd64.*linux/arm64, linux/s"),
        ((index(b"not there", "linux/amd64"),), "404"),
        ((index(index(b"x", "linux/amd64"), "linux/amd64"), index(b"x", "linux/amd64")), "leads to another index"),
        ((manifest(config("arm64")), config("arm64")), "it is for linux/arm64, and VMs here run linux/amd64"),
        ((manifest(config(layers=2)), config(layers=2)), "has 1 layers, and its configuration names 2"),
        ((manifest(config(layers=300), layers=300), config(layers=300)), "300 layers, more than the 256"),
        (
            (manifest(config(), "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),),
            "of the kind application/vnd.cncf",
        ),
        ((b"[]",), "document cannot be read"),
        ((b"{}",), "no container image"),
        (
            (json.dumps({"mediaType": "application/vnd.docker.plugin.v1+json"}).encode(),),
            "no container image, but appl",
        ),
        ((json.dumps({"config": descriptor(b"", "x"), "layers": []}).encode(), b""), "config cannot be read"),
        ((manifest(config()).replace(b"sha256:", b"sha512:"),), "is no sha256"),
        ((b"{" + b" " * (4 << 20) + b"}",), "MIKROM_IMAGE_MAX_MIB"),
    ],
)
def test_an_image_that_cannot_be_used_says_why(
    documents: tuple[bytes, ...], message: str, bad: Bad, tmp_path: Path
) -> None:
    bad.documents |= {digest(document): document for document in documents}
    with pytest.raises(FetchError, match=message) as caught:
        read(Parts(tmp_path), bad.repository, digest(documents[0]))
    assert caught.value.lasting


def test_an_index_leads_to_the_manifest_of_this_platform(bad: Bad, tmp_path: Path) -> None:
    found = index(manifest(config()), "unknown/unknown", "linux/amd64")
    bad.documents[digest(found)] = found
    assert read(Parts(tmp_path), bad.repository, digest(found)) == 1


def test_a_layer_that_breaks_off_is_gone_on_with(bad: Bad, tmp_path: Path) -> None:
    def half(request: http.server.BaseHTTPRequestHandler) -> None:
        send(request, LAYER[:100_000], length=len(LAYER))

    def rest(request: http.server.BaseHTTPRequestHandler) -> None:
        begin = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        send(request, LAYER[begin:], 206)

    bad.layer = half
    parts = Parts(tmp_path)
    with pytest.raises(FetchError, match="the next attempt goes on from there") as caught:
        read(parts, bad.repository, WHOLE)
    assert not caught.value.lasting
    bad.layer = rest
    bad.asked.clear()
    assert read(parts, bad.repository, WHOLE) == 1
    assert [wanted for _, wanted, _ in bad.asked] == ["bytes=100000-"], "and nothing is asked for twice"


def test_a_registry_that_lies_about_a_digest_is_found_out(bad: Bad, tmp_path: Path) -> None:
    bad.layer = lambda request: send(request, LAYER[::-1])
    parts = Parts(tmp_path)
    with pytest.raises(FetchError, match=f"its sha256 is {digest(LAYER[::-1])}"):
        read(parts, bad.repository, WHOLE)
    assert not [path for path in parts.folder.iterdir() if path.name.startswith(digest(LAYER))]


def test_a_slow_registry_has_until_the_deadline(bad: Bad, tmp_path: Path) -> None:
    is_over = threading.Event()

    def drip(request: http.server.BaseHTTPRequestHandler) -> None:
        send(request, b"", length=len(LAYER))
        with suppress(OSError):
            while not is_over.wait(0.05):
                request.wfile.write(b"x")

    bad.layer = drip
    parts = Parts(tmp_path, patience_s=1.0)
    with pytest.raises(FetchError, match=r"no more time|timed out") as caught:
        read(parts, bad.repository, WHOLE)
    is_over.set()
    assert not caught.value.lasting


def test_credentials_do_not_follow_a_redirect(bad: Bad, tmp_path: Path) -> None:
    def away(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(307)
        request.send_header("Location", f"http://{bad.server.address}/elsewhere")
        request.end_headers()

    bad.layer = away
    with pytest.raises(FetchError, match=r"redirects to http://.*, which is not https"):
        read(Parts(tmp_path), bad.repository, WHOLE)


@pytest.mark.parametrize("challenge", ["", "Digest realm=x", "Bearer", 'Bearer realm="http://192.0.2.1/token"'])
def test_a_registry_that_wants_what_nobody_has_is_told_so(challenge: str, bad: Bad, tmp_path: Path) -> None:
    bad.challenge = challenge or " "
    with pytest.raises(FetchError, match=r"credentials read it|not https") as caught:
        read(Parts(tmp_path), bad.repository, WHOLE)
    assert caught.value.lasting


def test_credentials_of_another_registry_are_not_given_away(bad: Bad, tmp_path: Path) -> None:
    auth_file = tmp_path / "auth.json"
    for content, message in (
        ('{"auths": {"registry.example": {"auth": "c29tZW9uZTpzZWNyZXQ="}}}', "anybody without credentials"),
        ("[]", f"MIKROM_REGISTRY_AUTH={auth_file} is no file of `docker login`"),
        (json.dumps({"auths": {bad.server.address: {"auth": "$"}}}), "is no file of `docker login`"),
    ):
        auth_file.write_text(content)
        bad.challenge = "Basic"
        file = PinnedFile(source=f"oci:{bad.repository}", sha256=WHOLE)
        with pytest.raises(FetchError, match=message) as caught:
            image_of(file, Parts(tmp_path).fetch, registries(auth_file), max_bytes=MAX_BYTES)
        assert caught.value.lasting

"""Registries for tests: Debian's `docker-registry` on loopback, and a server that behaves badly on order."""

from __future__ import annotations

import base64
import datetime as dt
import http.server
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

BASIC = "someone:$2b$05$Ox29wt.NdnYb97Eukc7x7.SkfTZjidPumOF23xcUzM4ijSG3L.1he"
"""A line of htpasswd: that password is "secret"."""


@contextmanager
def docker_registry(folder: Path, auth: str = "") -> Iterator[str]:
    """One whose files are below `folder`; its host and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
        f"http: {{addr: '{address}', secret: x}}\n{auth}"
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
                break
            assert process.poll() is None, (folder / "registry.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield address
    finally:
        process.terminate()
        process.wait()


class TokenService:
    """What lets "someone" with "secret" read, and anybody else nothing, by tokens that a registry believes."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[tuple[str | None, dict[str, list[str]]]] = []
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        now = dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .sign(self._key, hashes.SHA256())
        )
        self._certificate = base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()
        bundle = folder / "tokens.pem"
        bundle.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.server = Server(self.answer)
        self.auth = (
            f"auth: {{token: {{realm: 'http://{self.server.address}/token', service: tests, issuer: tests,"
            f" rootcertbundle: {bundle}}}}}\n"
        )

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(request.path).query)
        self.asked.append((request.headers.get("Authorization"), query))
        known = request.headers.get("Authorization") == "Basic " + base64.b64encode(b"someone:secret").decode()
        kind, name, actions = query["scope"][0].split(":")
        access = [{"type": kind, "name": name, "actions": actions.split(",")}] if known else []
        send(request, json.dumps({"token": self._signed(access)}).encode())

    def _signed(self, access: list[Any]) -> str:
        now = int(time.time())
        head = {"typ": "JWT", "alg": "ES256", "x5c": [self._certificate]}
        said = {"iss": "tests", "aud": "tests", "sub": "", "exp": now + 300, "nbf": now - 60, "iat": now, "jti": "1"}
        text = b".".join(_base64(json.dumps(part).encode()) for part in (head, {**said, "access": access}))
        r, s = utils.decode_dss_signature(self._key.sign(text, ec.ECDSA(hashes.SHA256())))
        return (text + b"." + _base64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


class Server:
    """A web server on loopback that leaves each answer to `answer`."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        handler = type("Handler", (_Handler,), {"answer": staticmethod(answer)})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that had enough
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(self)  # type: ignore[attr-defined]  # given by Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def send(
    request: http.server.BaseHTTPRequestHandler, content: bytes, status: int = 200, *, length: int | None = None
) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(content) if length is None else length))
    request.end_headers()
    request.wfile.write(content)

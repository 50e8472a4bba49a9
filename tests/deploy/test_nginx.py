"""`deploy/nginx/flower.conf` before a real Flower, in a real nginx with a certificate that was made for the test."""

from __future__ import annotations

import base64
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from tests.deploy.installed import adapted, free_port
from tests.fleet import Fleet, wait_until

pytestmark = [pytest.mark.redis, pytest.mark.needs("nginx", "openssl")]

ALLOWED, REFUSED = "127.0.0.2", "127.0.0.3"
CREDENTIALS = "ana:not-the-default"
NGINX = """\
daemon off;
error_log {folder}/error.log;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/flower.conf;
}}
"""


class Proxy:
    """Flower on loopback, and nginx before it."""

    def __init__(self, folder: Path) -> None:
        self.fleet = Fleet(folder)
        self.https, self.http, flower = free_port(), free_port(), free_port()
        tls = folder / "etc/nginx/tls"
        tls.mkdir(parents=True)
        made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        made += ["-subj", "/CN=flower.example.net", "-addext", "subjectAltName=DNS:flower.example.net"]
        made += ["-keyout", str(tls / "flower.key"), "-out", str(tls / "flower.crt")]
        subprocess.run(made, check=True, capture_output=True)
        self.context = ssl.create_default_context(cafile=tls / "flower.crt")
        self.context.check_hostname = False  # the connection goes to an address, not to the name
        text = adapted("nginx/flower.conf", folder)
        for fixed, ours in (
            ("listen 443 ", f"listen 127.0.0.1:{self.https} "),
            ("listen 80;", f"listen 127.0.0.1:{self.http};"),
            ("127.0.0.1:5555", f"127.0.0.1:{flower}"),
            ("allow 10.0.0.0/8", f"allow {ALLOWED}"),
        ):
            assert fixed in text
            text = text.replace(fixed, ours)
        (folder / "flower.conf").write_text(text)
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder))
        own = {"FLOWER_BASIC_AUTH": CREDENTIALS, "FLOWER_PORT": str(flower)}
        self.fleet.run("flower", [sys.executable, "-m", "mikrom_reconcile", "flower"], **own)
        self.nginx = self.fleet.run("nginx", ["nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"])
        wait_until(lambda: self.status("/", ALLOWED) == 401, "Flower behind nginx")

    def status(self, path: str, source: str, credentials: str | None = None) -> int | None:
        """The status of the answer to a request that comes from the address `source`."""
        headers = {"Host": "flower.example.net"}
        if credentials:
            headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        port, context = self.https, self.context
        with closing(
            HTTPSConnection("127.0.0.1", port, source_address=(source, 0), timeout=60, context=context)
        ) as way:
            try:
                way.request("GET", path, headers=headers)
                return way.getresponse().status
            except OSError:
                return None

    def close(self) -> None:
        self.nginx.terminate()  # its worker goes with it, which a kill would leave
        self.nginx.wait(timeout=240)
        self.fleet.close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path_factory.mktemp("nginx"))
    try:
        yield proxy
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("path", "source", "credentials", "status"),
    [
        ("/", REFUSED, None, 403),
        ("/", REFUSED, CREDENTIALS, 403),
        ("/", ALLOWED, None, 401),
        ("/", ALLOWED, "ana:guess", 401),
        ("/api/tasks", ALLOWED, None, 401),
        ("/", ALLOWED, CREDENTIALS, 200),
        ("/api/tasks", ALLOWED, CREDENTIALS, 200),
        ("/metrics", ALLOWED, CREDENTIALS, 403),
        ("/healthcheck", ALLOWED, CREDENTIALS, 403),
        ("/%6detrics", ALLOWED, CREDENTIALS, 403),
        ("//metrics", ALLOWED, CREDENTIALS, 403),
        ("/metrics/", ALLOWED, CREDENTIALS, 404),
    ],
)
def test_flower_is_shown_to_named_networks_with_credentials(
    proxy: Proxy, path: str, source: str, credentials: str | None, status: int
) -> None:
    assert proxy.status(path, source, credentials) == status


def test_what_asks_without_tls_is_sent_to_the_secure_address(proxy: Proxy) -> None:
    with closing(HTTPConnection("127.0.0.1", proxy.http, timeout=60)) as way:
        way.request("GET", "/tasks", headers={"Host": "flower.example.net"})
        answer = way.getresponse()
        assert (answer.status, answer.headers["Location"]) == (301, "https://flower.example.net/tasks")

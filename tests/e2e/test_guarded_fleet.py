"""A fleet with TLS, a Redis user per host and signed orders: all works, and nobody reaches what is another's."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from redis import ConnectionError as LostConnectionError, Redis
from redis.exceptions import NoPermissionError

from mikrom_reconcile import wiring
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.errors import SetupError, UsageError
from mikrom_reconcile.core.model.plan import RunRequest
from mikrom_reconcile.dispatch.app import make_app
from mikrom_reconcile.dispatch.transport.broker import broker_url, client_of, connect
from mikrom_reconcile.dispatch.transport.signing import make_pair
from mikrom_reconcile.settings import load
from tests.fleet import KEYS, ROOT, Fleet, wait_until
from tests.samples import outcome, record
from tests.scratch import SCRATCH

pytestmark = pytest.mark.redis

CREDENTIALS = "ana:not-the-default"
FLEET = """
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: all}
spec: {hosts: {hv01: {}, hv02: {}}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec: {replicas: 6, template: {image: hello, machine: {mem_size_mib: 4}}}
"""


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def authority(folder: Path, name: str) -> Path:
    """A certificate authority that nobody knows."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    openssl("req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", key, "-out", certificate,
            "-days", "2", "-subj", f"/CN={name}")  # fmt: skip
    return certificate


def server_certificate(folder: Path, ca: Path) -> None:
    """`redis.pem` and its key, for 127.0.0.1 and no other name."""
    request = folder / "redis.csr"
    openssl("req", "-newkey", "ed25519", "-nodes", "-keyout", folder / "redis.key", "-out", request, "-subj", "/CN=x")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca.with_suffix(".key"), "-out", folder / "redis.pem",
            "-days", "2", "-extfile", folder / "names")  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class GuardedFleet(Fleet):
    """Redis as docs/security.md sets it up, on a port of this machine."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.ca = authority(folder, "ca")
        server_certificate(folder, self.ca)
        make_pair(folder / "signing.pem", folder / "verify.pem")
        self.broker = f"rediss://127.0.0.1:{self.port}/0?ssl_ca_certs={self.ca}"
        make_acl = [
            sys.executable,
            "deploy/redis/make_acl.py",
            str(folder / "users"),
            self.broker,
            "hv01",
            "hv02",
            "hv011",
        ]
        for _ in range(2):  # the second time it keeps every password
            subprocess.run(make_acl, check=True, cwd=ROOT, capture_output=True)
        files = f"tls-cert-file {folder}/redis.pem\ntls-key-file {folder}/redis.key\ntls-ca-cert-file {self.ca}"
        listen = f"bind 127.0.0.1\ntls-port {self.port}\n{files}\ntls-auth-clients no\naclfile {folder}/users/users.acl"
        self.users = folder / "users"
        super().__init__(folder, url=self.url_of("admin"), listen=listen)

    def url_of(self, user: str) -> str:
        return (self.users / f"{user}.env").read_text().strip().removeprefix("MIKROM_BROKER_URL=")

    def start(self, name: str, user: str, argv: list[str], **more: str) -> subprocess.Popen[bytes]:
        own = {"MIKROM_BROKER_URL": self.url_of(user), "MIKROM_STATE_DIR": f"{self.folder}/{name}"}
        return self.run(name, argv, **own, **more)

    def host(self, host: str) -> subprocess.Popen[bytes]:
        own = {"MIKROM_HOST": host, "MIKROM_VERIFY_KEY": f"{self.folder}/verify.pem"}
        return self.start(f"host-{host}", f"host-{host}", [sys.executable, "run_worker.py"], **own)

    def client(self, user: str) -> Redis:
        return client_of(self.url_of(user))

    def refusals(self) -> list[Any]:
        """What Redis refused to whom."""
        return list(self.redis.acl_log())


@pytest.fixture(scope="module")
def fleet() -> Iterator[GuardedFleet]:
    version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    if "v=6." in version:
        pytest.skip(f"a user per host needs Redis 7 or newer, this is {version.split()[2]}")
    with tempfile.TemporaryDirectory(prefix="mk-", dir=SCRATCH) as folder:
        fleet = GuardedFleet(Path(folder))
        try:
            yield fleet
        finally:
            fleet.close()


def everybody(fleet: GuardedFleet, flower_port: int) -> dict[str, subprocess.Popen[bytes]]:
    """Every process of a fleet, ready; the hosts' by their names."""
    specs = fleet.folder / "specs.yml"
    specs.write_text(FLEET)
    own = {"MIKROM_SPECS": str(specs), "MIKROM_RECONCILE_INTERVAL": "0.5"}
    signing = {"MIKROM_WORKER_ROLE": "control", "MIKROM_SIGNING_KEY": f"{fleet.folder}/signing.pem"}
    hosts = {host: fleet.host(host) for host in ("hv01", "hv02")}
    control = fleet.start("control-localhost", "control", [sys.executable, "run_worker.py"], **signing, **own)
    beat = fleet.start("beat-localhost", "control", [sys.executable, "run_beat.py"], **own)
    flower = {"FLOWER_BASIC_AUTH": CREDENTIALS, "FLOWER_PORT": str(flower_port)}
    fleet.start("flower", "flower", [sys.executable, "-m", "mikrom_reconcile", "flower"], **flower)
    for host, process in hosts.items():
        fleet.wait_for(f"host:{host}", process)
    fleet.wait_for(f"control:localhost:{control.pid}", control)
    fleet.wait_for(f"beat:localhost:{beat.pid}", beat)
    return hosts


def said_by(fleet: GuardedFleet, user: str, *words: str, **own: str) -> str:
    environment = fleet.environment(MIKROM_BROKER_URL=fleet.url_of(user), PYTHONPATH=str(ROOT), **own)
    argv = [sys.executable, "-m", *words]
    ended = subprocess.run(argv, env=environment, cwd=fleet.folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_whole_fleet_works_and_nothing_of_it_is_ever_refused(fleet: GuardedFleet) -> None:
    fleet.redis.acl_log_reset()
    port = free_port()
    hosts = everybody(fleet, port)
    engine = wiring.remote_engine(fleet.settings(), fleet.url_of("control"))
    tree = SourceTree(revision="r1", files=(SourceFile(path="web.yml", text=FLEET),))
    wait_until(lambda: len(engine.store.placements("default").vms) == 6, "Beat's run")
    report = engine.apply(RunRequest(run_id="run-1", origin="a test", tree=tree), None, progress=lambda _: None)
    assert report.remaining is not None
    assert report.remaining.changes == ()
    assert report.remaining.unchanged == {"hv01": 3, "hv02": 3}
    assert engine.hosts.console("hv01", "web-000", max_bytes=100).content.startswith(b"MIKROM-UP")

    wait_until(lambda: {"host@hv01", "host@hv02"} <= flower_json(port, "/api/workers?refresh=1").keys(), "Flower")
    assert {queue["name"] for queue in flower_json(port, "/api/queues/length")["active_queues"]} >= {"mikrom:queue"}
    ping = ("celery", "-A", "mikrom_reconcile.celery_app", "inspect", "ping", "-t", "3")
    assert "host@hv01: OK" in said_by(fleet, "control", *ping)
    key = {"MIKROM_VERIFY_KEY": f"{fleet.folder}/verify.pem"}
    assert "user host-hv01" in said_by(fleet, "host-hv01", "mikrom_reconcile", "doctor", "--security", **key)

    hosts["hv01"].send_signal(signal.SIGTERM)
    assert hosts["hv01"].wait(timeout=240) == 0
    assert fleet.refusals() == []


def flower_json(port: int, path: str) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("Authorization", f"Basic {base64.b64encode(CREDENTIALS.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found
    except OSError:
        return {}


@pytest.mark.parametrize(
    "words",
    [
        ("BRPOP", KEYS.host_queue("hv02"), "1"),
        ("LPUSH", KEYS.host_queue("hv02"), "a forged order"),
        ("LPUSH", f"{KEYS.host_queue('hv02')}\x06\x162", "a forged order"),
        ("LPUSH", KEYS.host_queue("hv011"), "to one whose name only begins like ours"),
        ("LPUSH", f"{KEYS.host_queue('hv011')}\x06\x162", "the same"),
        ("LPUSH", KEYS.queue, "a run of its own"),
        ("LRANGE", KEYS.host_queue("hv01"), "0", "9"),
        ("HGET", KEYS.unacked("host:hv02"), "x"),
        ("HGET", KEYS.unacked("control"), "x"),
        ("XADD", KEYS.answers("execute-1", "host:hv02"), "*", "kind", "outcome"),
        ("XADD", KEYS.answers("execute-1", "control"), "*", "kind", "report"),
        ("SET", KEYS.call("execute-1"), ""),
        ("SET", KEYS.heartbeat("host:hv02"), "me"),
        ("SET", KEYS.known("hv03"), ""),
        ("GET", KEYS.request("run-1")),
        ("GET", "mikrom:placements:default"),
        ("HSET", KEYS.history("hv02"), "x", "a deed of another host"),
        ("HSET", "mikrom:history:asked", "x", "a deed of nobody"),
        ("GET", "celery-task-meta-0"),
        ("SADD", f"_kombu.binding.{KEYS.host_queue('hv02')}", "me"),
        ("SADD", "_kombu.binding.reply.celery.pidbox", "me"),
        ("BRPOP", "0.reply.celery.pidbox", "1"),
        ("PUBLISH", "/0.celery.pidbox", '{"method": "shutdown"}'),
        ("PSUBSCRIBE", "/0.celeryev/*"),
        ("EVAL", "return redis.call('LPUSH', 'mikrom:queue.hv02', 'x')", "0"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("RANDOMKEY",),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("SCRIPT", "FLUSH"),
        ("MONITOR",),
        ("SHUTDOWN",),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_host_reaches_nothing_that_is_not_its_own(fleet: GuardedFleet, words: tuple[str, ...]) -> None:
    with fleet.client("host-hv01") as client, pytest.raises(Exception) as told:  # noqa: PT011 - inside Lua it is another
        client.execute_command(*words)
    inside_lua = "The user executing the script can't"
    assert isinstance(told.value, NoPermissionError) or str(told.value).startswith(inside_lua)


def test_a_host_tells_what_it_did_by_itself(fleet: GuardedFleet) -> None:
    deed = record("r", outcome("web-000", host="hv01"), origin="supervision of hv01")
    RedisStore(fleet.client("host-hv01"), prefix=KEYS.prefix).save(deed)
    runs = RedisStore(fleet.client("control"), prefix=KEYS.prefix).runs(100)  # those of other tests among them
    assert [run for run in runs if run.origin == deed.origin] == [deed]


def test_a_host_reaches_what_is_its_own(fleet: GuardedFleet) -> None:
    with fleet.client("host-hv01") as client:
        assert client.llen(KEYS.host_queue("hv01")) >= 0  # what Beat's last run asked may still wait there
        assert client.llen(f"{KEYS.host_queue('hv01')}\x06\x162") >= 0
        assert client.exists(KEYS.call("execute-1")) == 0


@pytest.mark.parametrize("words", [("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("ACL", "LIST")])
def test_neither_control_nor_flower_may_ruin_redis(fleet: GuardedFleet, words: tuple[str, ...]) -> None:
    for user in ("control", "flower"):
        with fleet.client(user) as client, pytest.raises(NoPermissionError):
            client.execute_command(*words)


def test_flower_cannot_send_orders(fleet: GuardedFleet) -> None:
    with fleet.client("flower") as client:
        for queue in (KEYS.queue, KEYS.host_queue("hv01")):
            with pytest.raises(NoPermissionError):
                client.lpush(queue, "an order")


def test_a_worker_with_the_credentials_of_another_host_does_not_run(fleet: GuardedFleet) -> None:
    worker = fleet.start("thief", "host-hv01", [sys.executable, "run_worker.py"], MIKROM_HOST="hv02")
    assert worker.wait(timeout=240) != 0
    said = (fleet.folder / "thief.log").read_text()
    assert "mikrom worker: this user of the broker may not be host:hv02: is MIKROM_HOST right?" in said
    assert "Traceback" not in said


def test_nobody_gets_in_without_a_user_and_its_password(fleet: GuardedFleet) -> None:
    stranger = fleet.broker
    with client_of(stranger) as client, pytest.raises(LostConnectionError, match="Authentication required"):
        client.ping()
    guess = stranger.replace("127", "host-hv01:guess@127", 1)
    with pytest.raises(SetupError, match="are user and password in MIKROM_BROKER_URL right"):
        connect(guess)


def test_the_acl_file_holds_no_password_and_each_file_is_closed_to_others(fleet: GuardedFleet) -> None:
    acl = (fleet.users / "users.acl").read_text()
    assert acl.splitlines()[0] == "user default off"
    for user in ("admin", "control", "flower", "host-hv01"):
        password = fleet.url_of(user).split(":")[2].partition("@")[0]
        assert len(password) == 48
        assert password not in acl
    assert {path.stat().st_mode & 0o777 for path in fleet.users.iterdir()} == {0o600}


def test_no_user_is_made_for_a_pattern(own_environment: Path) -> None:
    argv = [sys.executable, "deploy/redis/make_acl.py", str(own_environment / "users"), "rediss://there", "hv*"]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "must be a host's name in the inventory" in ended.stderr
    assert not (own_environment / "users").exists()


class TestACertificateThatIsNotTrusted:
    @pytest.fixture(params=["another authority", "this machine's authorities", "another name"])
    def url(self, request: pytest.FixtureRequest, fleet: GuardedFleet, own_environment: Path) -> str:
        good = fleet.url_of("control")
        if request.param == "another authority":
            return good.replace(str(fleet.ca), str(authority(own_environment, "other")))
        if request.param == "another name":
            return good.replace("127.0.0.1", "localhost")
        return good.partition("?")[0]

    def test_is_refused_by_the_preflight_with_a_word_about_the_authority(self, url: str) -> None:
        with pytest.raises(SetupError, match=r"CERTIFICATE_VERIFY_FAILED.*name its authority: .*ssl_ca_certs=FILE"):
            connect(url)

    def test_is_refused_by_celerys_broker_and_by_its_results(self, url: str) -> None:
        app = make_app(load({"MIKROM_BROKER_URL": url}))
        with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"), app.connection() as connection:
            connection.ensure_connection(max_retries=1, timeout=1)
        with pytest.raises(LostConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            app.backend.client.ping()
        app.close()


@pytest.mark.parametrize("query", ["ssl_cert_reqs=none", "ssl_cert_reqs=CERT_OPTIONAL", "ssl_check_hostname=false"])
def test_not_to_verify_is_no_choice(query: str) -> None:
    with pytest.raises(UsageError, match="certificates are verified"):
        broker_url(load({"MIKROM_BROKER_URL": f"rediss://there/0?{query}"}))


def test_an_authority_that_is_not_there_is_told(own_environment: Path) -> None:
    with pytest.raises(UsageError, match="there is no file ssl_ca_certs=/nowhere"):
        broker_url(load({"MIKROM_BROKER_URL": "rediss://there/0?ssl_ca_certs=/nowhere&ssl_cert_reqs=CERT_REQUIRED"}))

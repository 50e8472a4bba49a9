"""The services of a fleet, each Celery's own command, and all by `mikrom up`. It must stay cheap to import."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Literal, NoReturn, get_args
from urllib.parse import quote, urlsplit

import msgspec

from mikrom_reconcile.core.model.errors import BusyError, MikromError, SetupError, UsageError
from mikrom_reconcile.dispatch.transport import broker
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.settings import Settings, refuse_misspelt
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.files import make_folder, tail, write_over, write_whole
from mikrom_reconcile.times_and_sizes import SERVICES, VMMS

Service = Literal["host", "control", "beat", "flower"]
APP = "mikrom_reconcile.celery_app"


def command(service: Service, settings: Settings) -> list[str]:
    """The command line of a service."""
    return [sys.executable, "-m", "celery", "-A", APP, *arguments(service, settings)]


def arguments(service: Service, settings: Settings) -> list[str]:
    """What Celery is told for a service. Mingle and gossip cost a fleet messages by the square of its size."""
    if service == "beat":
        return ["beat", "-l", "INFO"]
    if service == "flower":
        names = Path(__file__).with_name("flower_names.py")
        return ["flower", f"--conf={names}", "--address=127.0.0.1", f"--port={settings.flower_port}"]
    pool, slots = ("gevent", SERVICES.host_slots) if service == "host" else ("threads", SERVICES.control_slots)
    queue = Keys(settings.queue).host_queue(settings.host) if service == "host" else settings.queue
    name = f"{service}@{settings.host}"
    quiet = ["--without-mingle", "--without-gossip"]
    return ["worker", "-P", pool, "-c", str(slots), "-Q", queue, "-n", name, "-l", "INFO", *quiet]


_KEPT_FOR: dict[str, Service] = {
    "FLOWER_BASIC_AUTH": "flower",
    "MIKROM_PAGE_AUTH": "control",
    "MIKROM_SIGNING_KEY": "control",
    "MIKROM_VERIFY_KEY": "host",
}


def environment(service: Service, settings: Settings) -> dict[str, str]:
    """This process's, with what the settings say by now, and without the secrets that only another service may know."""
    role = "host" if service == "host" else "control"  # Beat and Flower are of the control side, and no host's worker
    own = {
        "MIKROM_BROKER_URL": settings.broker_url,
        "MIKROM_WORKER_ROLE": role,
        "MIKROM_SPECS": settings.specs,
        "MIKROM_SIGNING_KEY": settings.signing_key,
        "MIKROM_VERIFY_KEY": settings.verify_key,
        "FLOWER_BASIC_AUTH": settings.flower_basic_auth,
    }
    variables = os.environ | {name: str(value) for name, value in own.items() if value}
    return {name: value for name, value in variables.items() if _KEPT_FOR.get(name, service) == service}


def check(service: Service, settings: Settings) -> Settings:
    """The settings with the broker that was found. Raises UsageError or SetupError when it cannot be started."""
    refuse_misspelt()
    settings = replace(settings, broker_url=settings.broker_url or broker.find_up(settings))
    if service in {"control", "beat"} and not settings.specs:
        raise UsageError("MIKROM_SPECS is not set: a service does not guess which specs it keeps applying")
    if settings.specs and settings.specs.startswith("git+"):
        from mikrom_reconcile.control.sources.git import GitSource

        GitSource.of(settings.specs)
    if service == "flower":
        check_flower(settings)
    url = broker.broker_url(settings)
    try:
        broker.connect(url).close()
    except SetupError as error:
        if service not in {"host", "control"}:
            raise
        # a host's VMs have to be looked after meanwhile
        sys.stderr.write(f"mikrom worker: {error} Until then it waits.\n")
    return settings


def check_flower(settings: Settings) -> None:
    """Raises UsageError without credentials, and SetupError when its port is taken."""
    if not settings.flower_basic_auth:
        raise UsageError("FLOWER_BASIC_AUTH is not set (user:password): Flower shows every task and can stop workers")
    port = settings.flower_port
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise SetupError(f"Flower cannot listen on 127.0.0.1:{port}: {error.strerror}; set FLOWER_PORT") from error


def become(service: Service, settings: Settings) -> NoReturn:
    """Replace this process by the service, so that a supervisor watches the right one."""
    settings = check(service, settings)
    argv = command(service, settings)
    os.dup2(2, 1)  # Celery prints a banner, and ends with a traceback where nobody takes it
    os.execve(argv[0], argv, environment(service, settings))  # noqa: S606 - without a shell, on purpose


class Child:
    """A process in a session of its own, started again some times if it has a `log`; it dies with its parent."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], *, log: Path | None = None) -> None:
        self.name = name
        self._argv = ["setpriv", "--pdeathsig", "TERM", "--", *argv]
        self._env, self._log = dict(env), log
        self.process: subprocess.Popen[bytes] | None = None
        self.starts_left = SERVICES.starts if log else 1
        self._start_at = 0.0
        if log is not None:
            make_folder(log.parent)
            write_whole(log, b"", durable=False)

    def keep(self) -> str | None:
        """Start it when it is time; how it ended, if it has."""
        if self.process is None:
            if self.starts_left and time.monotonic() >= self._start_at:
                self._start()
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.process = None
        ended = f"{self.name}: ended ({f'exit code {code}' if code >= 0 else signal.Signals(-code).name})"
        if self._log is None:
            return ended
        self._start_at = time.monotonic() + SERVICES.restart_s
        next_start = f"starts again in {SERVICES.restart_s:g} s" if self.starts_left else "is not started again"
        lines = tail(self._log, SERVICES.log_tail_bytes).content.decode(errors="replace").strip().splitlines()
        return f"{ended}, {next_start}; {self._log} {f'ends with: {lines[-1]}' if lines else 'is empty'}"

    def _start(self) -> None:
        self.starts_left -= 1
        with self._log.open("ab") if self._log else nullcontext() as log:
            self.process = subprocess.Popen(
                self._argv, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )


def up(settings: Settings, *, run: bool, tell: Callable[[str], None]) -> int:
    """Run the services until SIGINT, SIGTERM or SIGHUP; with `run`, apply the specs when ready. Raises MikromError."""
    chosen = private_settings(settings)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    with _held(settings):
        check_flower(chosen)
        redis, children = redis_of(chosen), list[Child]()
        try:
            _await_redis(redis, broker.broker_url(chosen))
            children = services_of(chosen)
            tell(f"logs are in {chosen.state_dir / 'log'}")
            tell(f"Flower: http://127.0.0.1:{chosen.flower_port}")
            if not settings.flower_basic_auth:
                tell(f"Flower's user and password, until this ends: {chosen.flower_basic_auth}")
            _keep([redis, *children], tell, until=lambda: ended.is_set() or _workers_live(chosen))
            _announce(chosen, chosen.broker_url)
            tell("ready: other commands on this machine find these services; Ctrl-C ends them")
            if run:
                argv = [sys.executable, "-m", "mikrom_reconcile", "apply", chosen.specs or "", "--yes"]
                children.append(Child("apply", argv, environment("control", chosen)))
            _keep([redis, *children], tell, until=ended.is_set)
        finally:
            tell("ending the services; microVMs stay as they are")
            end_all(children, within_s=SERVICES.stop_s)
            end_all([redis], within_s=1.0)
    return 0


def private_settings(settings: Settings) -> Settings:
    """The settings with a broker, keys, credentials for Flower, an absolute path of specs. Raises MikromError."""
    refuse_misspelt()
    if settings.broker_url:
        raise UsageError("MIKROM_BROKER_URL is set, but `mikrom up` brings its own Redis: unset it")
    for program, package in (("redis-server", "redis-server"), ("setpriv", "util-linux")):
        if shutil.which(program) is None:
            raise SetupError(f"{program} is not installed; as root: apt-get install {package}")
    socket = settings.run_dir / "redis.sock"
    if len(os.fsencode(socket)) > VMMS.socket_path_bytes:
        most = f"a socket path has at most {VMMS.socket_path_bytes} bytes"
        raise UsageError(f"MIKROM_RUN_DIR={settings.run_dir} is too long: {most}")
    specs = settings.chosen_specs()
    return replace(
        settings,
        broker_url=f"redis+socket://:{secrets.token_urlsafe(24)}@{quote(str(socket))}",
        flower_basic_auth=settings.flower_basic_auth or f"mikrom:{secrets.token_urlsafe(12)}",
        signing_key=broker.signing_key_of_up(settings),
        verify_key=settings.run_dir / "verify.pem",
        specs=specs if specs.startswith("git+") else str(Path(specs).absolute()),
    )


def end_all(children: Sequence[Child], *, within_s: float) -> None:
    """End all of them together; what still runs after `within_s` is killed with its session."""
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()  # never SIGINT: Celery answers that with an exit code of 1
    until = time.monotonic() + within_s
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def redis_of(settings: Settings) -> Child:
    """The private Redis. It keeps nothing: whatever it holds may be lost."""
    conf = settings.run_dir / "redis.conf"
    form, url = Path(__file__).with_name("redis.conf").read_text("utf-8"), urlsplit(broker.broker_url(settings))
    text = Template(form).substitute(folder=settings.run_dir, password=url.password, mib=SERVICES.redis_mib)
    write_whole(conf, text.encode(), durable=False)
    log = settings.state_dir / "log" / "redis.log"
    return Child("redis", ["redis-server", str(conf)], {"PATH": os.environ.get("PATH", os.defpath)}, log=log)


def services_of(settings: Settings) -> list[Child]:
    """Workers, Beat and Flower. The workers get a pair of keys that lasts as long as they do."""
    from mikrom_reconcile.dispatch.transport.signing import make_pair

    assert settings.signing_key and settings.verify_key, "they were chosen for it"  # noqa: S101, PT018
    make_pair(settings.signing_key, settings.verify_key)
    logs = settings.state_dir / "log"
    return [
        Child(name, command(name, settings), environment(name, settings), log=logs / f"{name}.log")
        for name in get_args(Service)
    ]


def _await_redis(redis: Child, url: str) -> None:
    until, news = time.monotonic() + SERVICES.redis_start_s, redis.keep()
    while news is None and time.monotonic() < until:
        with suppress(SetupError):
            return broker.connect(url).close()
        time.sleep(SERVICES.poll_s / 2)
        news = redis.keep()
    raise SetupError(f"the private Redis does not run: {news or 'no answer'}")


def _workers_live(settings: Settings) -> bool:
    from mikrom_reconcile.control.stores.redis import translate_broker_errors  # only here, for they take long
    from mikrom_reconcile.dispatch.transport.shared_state import living

    with suppress(MikromError), broker.connect(broker.broker_url(settings)) as redis, translate_broker_errors():
        return all(living(redis, Keys(settings.queue), kind) for kind in ("host", "control"))
    return False


def _keep(children: Sequence[Child], tell: Callable[[str], None], *, until: Callable[[], bool]) -> None:
    while not until():
        for child in children:
            if (news := child.keep()) is not None:
                tell(news)
        time.sleep(SERVICES.poll_s)


@contextmanager
def _held(settings: Settings) -> Iterator[None]:
    """Hold the lock that says that an `up` runs here."""
    path = broker.up_file(settings)
    fd = locks.open_taken(path)
    if fd is None:
        other = broker.running_up(settings)
        pid = f", pid {other.pid}" if other else ""
        raise BusyError(f"another `mikrom up` runs here{pid} ({path}); end it first, or set another MIKROM_RUN_DIR")
    try:
        _announce(settings)
        yield
    finally:
        os.ftruncate(fd, 0)
        locks.give_back(fd)


def _announce(settings: Settings, broker_url: str | None = None) -> None:
    """Say beside the lock what others need to know."""
    running = broker.RunningUp(pid=os.getpid(), broker_url=broker_url)
    write_over(broker.up_file(settings), msgspec.json.encode(running))

"""Every setting, with its unit, default and why: an environment variable each, and a UsageError if it is wrong."""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.times_and_sizes import IMAGES


def _env(variable: str, default: Any, doc: str, parse: Callable[[str], Any] = str, *, secret: bool = False) -> Any:
    metadata = {"variable": variable, "doc": doc, "parse": parse, "secret": secret}
    return field(default=default, metadata=metadata)


def _matching(pattern: str, must_be: str, made: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """Reads what matches all of `pattern`, and refuses the rest in words."""

    def parse(text: str) -> Any:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise ValueError(f"must be {must_be}")
        return made(text)

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    return _matching("|".join(words), f"one of {', '.join(words)}")


_DRIVERS = ("auto", "firecracker", "qemu", "simulated")
_BROKERS = "redis://, rediss:// or redis+socket://; unset: a running `mikrom up`, else embedded"
_INTERVAL = "seconds between Beat's runs, or a cron line in UTC"
_SIGNING_KEY = "Ed25519 private key (PEM, 0600) of the control side; unset: unsigned orders"
_PAGE_AUTH = "user:password of the page at MIKROM_METRICS; without it only loopback has the page"
_SIGNERS = "SSH allowed_signers file: commits of specs must be signed by one of them"
_GNUPGHOME = "GPG keyring folder: the same; with both, one of either"
_POLICY = "a command that judges each plan (JSON on stdin) where it is carried out; only exit code 0 allows it"
_APPROVALS = "how many people have to approve what takes VMs' data away (`mikrom approve`), on control and on hosts"
_APPROVERS = "SSH allowed_signers file: who may approve"
_SPECS = "a path or git+<url>@<ref>#<folder>; the CLI falls back to ./specs, services refuse"
_VERIFY_KEY = "the public key of it: a host that has it carries out signed orders only"
_MIRRORS = "registry=mirror[:port][/prefix], with , between: the mirror is asked in its place"
_WEBHOOKS = "json=, slack=, github= and gitlab= https://…, with , between: who is told what scheduled runs find"
_SECRETS = (Path("/etc/mikrom/secrets"),)
_FOLDERS = "folders, with : between, of file://"
_ABSOLUTE = "an absolute path: relative ones mean another place in each working directory"  # only shells expand ~
_driver = _one_of(*_DRIVERS)
_path = _matching("/.*", _ABSOLUTE, Path)
_program = _matching("/.*", _ABSOLUTE)
_specs = _matching(r"/.*|git\+.*", _ABSOLUTE)
_number = _matching(r"0*[1-9][0-9]*", "a whole number from 1 up", int)
_on_or_off = _matching("[01]", "0 or 1", lambda text: text == "1")
host_name = _matching(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "a host's name in the inventory: letters, digits, dots, dashes, underscores"
)
"""What becomes part of queues, keys and ACL patterns; the inventory's schema has the same rule."""


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(_path(folder) for folder in text.split(":") if folder)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _pairs(pattern: str, example: str) -> Callable[[str], tuple[tuple[str, str], ...]]:
    def parse(text: str) -> tuple[tuple[str, str], ...]:
        if not all(re.fullmatch(pattern, pair) for pair in _names(text)):
            raise ValueError(f"must be like {example}, with , between several")
        return tuple(pair.partition("=")[::2] for pair in _names(text))

    return parse


_mirrors = _pairs(r"[^=]+=[^/=]+(/[^/=]+)*", "docker.io=mirror.example.net:5000")
_hooks = _pairs("(json|slack|github|gitlab)=https?://[^/ ]+(/[!-~]*)?", "slack=https://hooks.example.net/T0/B0")


def seconds(text: str) -> float:
    """A time above 0, and below what no clock can add. Raises ValueError."""
    with suppress(ValueError):
        if 0 < (value := float(text)) < 1e9:
            return value
    raise ValueError("must be a number of seconds above 0")


def _cron(text: str) -> float | str:
    """Whether the words of a cron line make sense, Celery's own reader of them says when a service starts."""
    words = text.split()
    if len(words) == 5:
        return " ".join(words)
    try:
        return seconds(text)
    except ValueError as error:
        raise ValueError(f"{error}, or a cron line of five fields") from None


def _listen(text: str) -> str:
    address, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("must be a port, or address:port")
    return f"{address or '127.0.0.1'}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of this process. Paths are absolute; None means that the default is found at run time."""

    driver: str = _env("MIKROM_DRIVER", "auto", f"{', '.join(_DRIVERS)}; auto: firecracker, else qemu", _driver)
    state_dir: Path = _env("MIKROM_STATE_DIR", None, "records, consoles and the embedded store", _path)
    run_dir: Path = _env("MIKROM_RUN_DIR", None, "API sockets; short, a socket path has at most 107 bytes", _path)
    host: str = _env("MIKROM_HOST", "localhost", "this host's name in the inventory", host_name)
    firecracker: str | None = _env("MIKROM_FIRECRACKER", None, "the binary; else PATH, then <state dir>/bin", _program)
    jailer: str | None = _env("MIKROM_JAILER", None, "the binary; else beside firecracker, then as that", _program)
    jail: str = _env("MIKROM_JAIL", "off", "on: every Firecracker through the jailer, as root", _one_of("off", "on"))
    image_dirs: tuple[Path, ...] = _env("MIKROM_IMAGE_DIRS", (), f"{_FOLDERS} images; else <state dir>/images", _paths)
    drive_dirs: tuple[Path, ...] = _env(
        "MIKROM_DRIVE_DIRS", (), f"{_FOLDERS} drives; else <state dir>/existing", _paths
    )
    image_max_mib: int = _env("MIKROM_IMAGE_MAX_MIB", IMAGES.max_mib, "MiB of the largest image of a host", _number)
    registry_auth: Path | None = _env("MIKROM_REGISTRY_AUTH", None, "credentials that `docker login` wrote", _path)
    registry_mirrors: tuple[tuple[str, str], ...] = _env("MIKROM_REGISTRY_MIRRORS", (), _MIRRORS, _mirrors)
    secret_dirs: tuple[Path, ...] = _env("MIKROM_SECRET_DIRS", _SECRETS, f"{_FOLDERS} secrets", _paths)
    secret_env: tuple[str, ...] = _env("MIKROM_SECRET_ENV", (), "variables, with , between, of env:// secrets", _names)
    broker_url: str | None = _env("MIKROM_BROKER_URL", None, _BROKERS)
    worker_role: Literal["host", "control"] = _env(
        "MIKROM_WORKER_ROLE", "host", "host (gevent, one per hypervisor) or control", _one_of("host", "control")
    )
    queue: str = _env("CELERY_QUEUE_NAME", "mikrom:queue", "control queue; a host's queue is <it>.<host>")
    flower_basic_auth: str | None = _env("FLOWER_BASIC_AUTH", None, "user:password; Flower needs it", secret=True)
    flower_port: int = _env("FLOWER_PORT", 5555, "port of Flower on loopback", _number)
    signing_key: Path | None = _env("MIKROM_SIGNING_KEY", None, _SIGNING_KEY, _path)
    verify_key: Path | None = _env("MIKROM_VERIFY_KEY", None, _VERIFY_KEY, _path)
    forks: int = _env("MIKROM_FORKS", 32, "actions at once per host; starts mostly wait in the kernel", _number)
    timeout_s: float = _env("MIKROM_TIMEOUT", 600.0, "seconds an apply may take", seconds)
    reconcile_interval: float | str = _env("MIKROM_RECONCILE_INTERVAL", 60.0, _INTERVAL, _cron)
    reconcile_mode: Literal["enforce", "report"] = _env(
        "MIKROM_RECONCILE_MODE",
        "enforce",
        "report: scheduled runs tell what they would do",
        _one_of("enforce", "report"),
    )
    webhooks: tuple[tuple[str, str], ...] = _env("MIKROM_WEBHOOKS", (), _WEBHOOKS, _hooks, secret=True)
    webhook_secret: str | None = _env("MIKROM_WEBHOOK_SECRET", None, "what json= is signed with", secret=True)
    webhook_token: str | None = _env("MIKROM_WEBHOOK_TOKEN", None, "of github= or gitlab=", secret=True)
    metrics: str | None = _env("MIKROM_METRICS", None, "[address:]port of a control worker: metrics, page", _listen)
    page_auth: str | None = _env("MIKROM_PAGE_AUTH", None, _PAGE_AUTH, secret=True)
    specs: str | None = _env("MIKROM_SPECS", None, _SPECS, _specs)
    git_allowed_signers: Path | None = _env("MIKROM_GIT_ALLOWED_SIGNERS", None, _SIGNERS, _path)
    git_gnupghome: Path | None = _env("MIKROM_GIT_GNUPGHOME", None, _GNUPGHOME, _path)
    policy: str | None = _env("MIKROM_POLICY", None, _POLICY, _program)
    approvals: int = _env("MIKROM_APPROVALS", 0, _APPROVALS, _matching("[0-9]", "a number from 0 to 9", int))
    approvers: Path = _env("MIKROM_APPROVERS", Path("/etc/mikrom/approvers"), _APPROVERS, _path)
    debug: bool = _env("MIKROM_DEBUG", False, "1: show the traceback of an internal mistake", _on_or_off)  # noqa: FBT003

    def chosen_specs(self) -> str:
        """Where the specs are when no path is given. Raises UsageError for an empty MIKROM_SPECS."""
        if self.specs == "":
            raise UsageError("MIKROM_SPECS is empty: unset it for ./specs, or say which specs")
        return self.specs or "specs"


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings; an empty variable is unset, but for MIKROM_SPECS. Raises UsageError naming the variable."""
    values: dict[str, Any] = {}
    for entry in fields(Settings):
        variable = entry.metadata["variable"]
        if text := environ.get(variable):
            values[entry.name] = _parsed(variable, text, entry.metadata["parse"], secret=entry.metadata["secret"])
    if environ.get("MIKROM_SPECS") == "":
        values["specs"] = ""  # a mistake: ./specs may be other specs than those that were meant
    for name, default in (("state_dir", _default_state_dir), ("run_dir", _default_run_dir)):
        values[name] = values.get(name) or default(environ)
    return Settings(**values)


def misspelt(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """A sentence for each variable that has our prefix and that nothing reads."""
    known = {entry.metadata["variable"] for entry in fields(Settings)}
    named = {name.strip() for name in environ.get("MIKROM_SECRET_ENV", "").split(",")}
    for name in sorted(name for name in environ.keys() - known - named if name.startswith("MIKROM_") and environ[name]):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        yield f"nothing reads {name}; {f'did you mean {close[0]}?' if close else '`mikrom doctor` lists every setting'}"


def refuse_misspelt() -> None:
    """What a service does not know, it must not run without. Raises UsageError."""
    if problems := "; ".join(misspelt()):
        raise UsageError(problems)


def _parsed(variable: str, text: str, parse: Callable[[str], Any], *, secret: bool = False) -> Any:
    try:
        text.encode()  # what is no UTF-8 cannot travel
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{variable}={'…' if secret else repr(text)}: {error}") from None


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    """Below the home of a person; a user without one is a service, and has it where root does."""
    if os.geteuid() == 0:
        return Path("/var/lib/mikrom")
    if text := environ.get("XDG_STATE_HOME"):
        return Path(_parsed("XDG_STATE_HOME", text, _path)) / "mikrom"
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    return Path("/var/lib/mikrom") if home == "~" else Path(_parsed("HOME", home, _path)) / ".local/state/mikrom"


def _default_run_dir(environ: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/run/mikrom")
    # without a login session there is no XDG_RUNTIME_DIR; the state folder outlives a reboot but works
    runtime = environ.get("XDG_RUNTIME_DIR")
    return _parsed("XDG_RUNTIME_DIR", runtime, _path) / "mikrom" if runtime else _default_state_dir(environ) / "run"

"""Every setting: an environment variable each, what it may be, and its default. What it means says `settings.yml`."""

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


def _env(variable: str, default: Any, parse: Callable[[str], Any] = str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"variable": variable, "parse": parse, "secret": secret})


def _matching(pattern: str, must_be: str, made: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """Reads what matches all of `pattern`, and refuses the rest in words."""

    def parse(text: str) -> Any:
        if not re.fullmatch(pattern, text, re.DOTALL):
            raise ValueError(f"must be {must_be}")
        return made(text)

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    return _matching("|".join(words), f"one of {', '.join(words)}")


_ABSOLUTE = "an absolute path: relative ones mean another place in each working directory"  # only shells expand ~
_driver = _one_of("auto", "firecracker", "qemu", "simulated")
_mode = _one_of("enforce", "report")
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

    driver: str = _env("MIKROM_DRIVER", "auto", _driver)
    state_dir: Path = _env("MIKROM_STATE_DIR", None, _path)
    run_dir: Path = _env("MIKROM_RUN_DIR", None, _path)
    host: str = _env("MIKROM_HOST", "localhost", host_name)
    firecracker: str | None = _env("MIKROM_FIRECRACKER", None, _program)
    jailer: str | None = _env("MIKROM_JAILER", None, _program)
    jail: str = _env("MIKROM_JAIL", "off", _one_of("off", "on"))
    image_dirs: tuple[Path, ...] = _env("MIKROM_IMAGE_DIRS", (), _paths)
    drive_dirs: tuple[Path, ...] = _env("MIKROM_DRIVE_DIRS", (), _paths)
    image_max_mib: int = _env("MIKROM_IMAGE_MAX_MIB", IMAGES.max_mib, _number)
    registry_auth: Path | None = _env("MIKROM_REGISTRY_AUTH", None, _path)
    registry_mirrors: tuple[tuple[str, str], ...] = _env("MIKROM_REGISTRY_MIRRORS", (), _mirrors)
    secret_dirs: tuple[Path, ...] = _env("MIKROM_SECRET_DIRS", (Path("/etc/mikrom/secrets"),), _paths)
    secret_env: tuple[str, ...] = _env("MIKROM_SECRET_ENV", (), _names)
    broker_url: str | None = _env("MIKROM_BROKER_URL", None)
    worker_role: Literal["host", "control"] = _env("MIKROM_WORKER_ROLE", "host", _one_of("host", "control"))
    queue: str = _env("CELERY_QUEUE_NAME", "mikrom:queue")
    flower_basic_auth: str | None = _env("FLOWER_BASIC_AUTH", None, secret=True)
    flower_port: int = _env("FLOWER_PORT", 5555, _number)
    signing_key: Path | None = _env("MIKROM_SIGNING_KEY", None, _path)
    verify_key: Path | None = _env("MIKROM_VERIFY_KEY", None, _path)
    forks: int = _env("MIKROM_FORKS", 32, _number)
    timeout_s: float = _env("MIKROM_TIMEOUT", 600.0, seconds)
    reconcile_interval: float | str = _env("MIKROM_RECONCILE_INTERVAL", 60.0, _cron)
    reconcile_mode: Literal["enforce", "report"] = _env("MIKROM_RECONCILE_MODE", "enforce", _mode)
    webhooks: tuple[tuple[str, str], ...] = _env("MIKROM_WEBHOOKS", (), _hooks, secret=True)
    webhook_secret: str | None = _env("MIKROM_WEBHOOK_SECRET", None, secret=True)
    webhook_token: str | None = _env("MIKROM_WEBHOOK_TOKEN", None, secret=True)
    metrics: str | None = _env("MIKROM_METRICS", None, _listen)
    page_auth: str | None = _env("MIKROM_PAGE_AUTH", None, secret=True)
    specs: str | None = _env("MIKROM_SPECS", None, _specs)
    git_allowed_signers: Path | None = _env("MIKROM_GIT_ALLOWED_SIGNERS", None, _path)
    git_gnupghome: Path | None = _env("MIKROM_GIT_GNUPGHOME", None, _path)
    policy: str | None = _env("MIKROM_POLICY", None, _program)
    approvals: int = _env("MIKROM_APPROVALS", 0, _matching("[0-9]", "a number from 0 to 9", int))
    approvers: Path = _env("MIKROM_APPROVERS", Path("/etc/mikrom/approvers"), _path)
    debug: bool = _env("MIKROM_DEBUG", False, _on_or_off)  # noqa: FBT003

    def chosen_specs(self) -> str:
        """Where the specs are when no path is given. Raises UsageError for an empty MIKROM_SPECS."""
        if self.specs == "":
            raise UsageError("MIKROM_SPECS is empty: unset it for ./specs, or say which specs")
        return self.specs or "specs"


def docs() -> dict[str, str]:
    """What each variable means."""
    lines = Path(__file__).with_suffix(".yml").read_text("utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines[2:])


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

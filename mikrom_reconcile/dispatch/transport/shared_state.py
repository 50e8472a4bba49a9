"""What workers leave in Redis for all to see: who lives, unfinished runs, the source, VMs as last seen."""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec.structs import replace
from redis import Redis, RedisError
from redis.exceptions import NoPermissionError

from mikrom_reconcile.control.stores.redis import RELEASE
from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.observed import HostReport, Phase
from mikrom_reconcile.core.model.plan import ActionOutcome, Plan, RunRequest, UnfinishedRun
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.dispatch.transport.rpc import WorkerId
from mikrom_reconcile.output.run_result import FAILED
from mikrom_reconcile.system.files import write_whole
from mikrom_reconcile.system.processes import boot_id
from mikrom_reconcile.times_and_sizes import BROKER, OBSERVING, RUNS

_CLAIM, _GIVE_UP = (Path(__file__).with_name(f"{name}.lua").read_text("utf-8") for name in ("claim", "give_up"))


def starts(redis: Redis, keys: Keys, owners: Collection[str]) -> dict[str, bytes]:
    """Start id of each of `owners` that lives."""
    if not owners:
        return {}
    found: Any = redis.mget([keys.heartbeat(owner) for owner in owners])
    return {owner: start for owner, start in zip(owners, found, strict=True) if start is not None}


def names_of(redis: Redis, before: str) -> tuple[str, ...]:
    """What the keys that begin with `before` go on with, sorted."""
    found = redis.scan_iter(match=f"{before}*", count=1000)
    return tuple(sorted({key.decode().removeprefix(before) for key in found}))


def living(redis: Redis, keys: Keys, kind: str) -> tuple[str, ...]:
    """Names of all that live of one kind ("host", "control", "beat"), sorted."""
    return names_of(redis, keys.heartbeat(f"{kind}:"))


def known(redis: Redis, keys: Keys) -> tuple[str, ...]:
    """Hosts whose workers lived within the last day, sorted: those that are unreachable now are among them."""
    return names_of(redis, keys.known(""))


def _this_machine(state_dir: Path) -> str:
    """What no other machine and no other state folder has, and a restart of a worker does not change."""
    folder = state_dir.stat()
    return blake2b(f"{boot_id()} {folder.st_dev} {folder.st_ino}".encode(), digest_size=8).hexdigest()


def machine_id(state_dir: Path) -> str:
    """What a machine keeps through reboots, and no other has, though its state folder or its disk were a copy."""
    kept, system = state_dir / "machine", Path("/etc/machine-id")
    if not kept.exists():
        draft = state_dir / f"machine-{secrets.token_hex(8)}"
        write_whole(draft, secrets.token_hex(16).encode())
        with suppress(FileExistsError):  # somebody else was first
            kept.hardlink_to(draft)
        draft.unlink()
    return blake2b(kept.read_bytes() + (system.read_bytes() if system.exists() else b""), digest_size=8).hexdigest()


def give_up(redis: Redis, keys: Keys, host: str) -> None:
    """Take the name of `host` from its machine, which stops what it runs should it come back."""
    redis.eval(_GIVE_UP, 2, keys.machine(host), keys.given_up(host))


class Heartbeat:
    """Keeps one key alive from a thread. A host's has the `state_dir` of its machine: where another machine has the
    name, this process ends, and where this one was given up, `fence` returns before the name is its own again.
    """

    def __init__(
        self, redis: Redis, keys: Keys, owner: str, *, state_dir: Path | None = None,
        fence: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.owner, self._fence = owner, fence
        self._machine = _this_machine(state_dir) if state_dir else ""
        self._machine_id = machine_id(state_dir) if state_dir else ""
        self._redis, self._key = redis, keys.heartbeat(owner)
        host = owner.removeprefix("host:")
        self._known, self._bound, self._given_up = keys.known(host), keys.machine(host), keys.given_up(host)
        self.start_id = self._new_start()
        self._ended = threading.Event()
        self._turn = threading.Lock()
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def refuse_a_second(self) -> None:
        """Raises SetupError where another machine plays this part, or this broker's user may not; waits for nobody."""
        try:
            self._claim(ttl_s=0)
        except NoPermissionError as error:
            hint = "is MIKROM_HOST right? An ACL of an older release is written anew by deploy/redis/make_acl.py"
            raise SetupError(f"this user of the broker may not be {self.owner}: {hint}") from error
        except RedisError:
            return  # Celery waits until its broker is back

    def start(self) -> None:
        """Be seen from now on."""
        self._beat_once()
        self._beating.start()

    def begin_anew(self) -> None:
        """Have everybody know that what was sent to this process so far may never have come."""
        if self._machine and self._beating.is_alive():
            self.start_id = self._new_start()
            self._beat_once()

    def leave(self) -> None:
        """Be gone at once; without it the key expires by itself."""
        self._ended.set()
        if self._beating.is_alive():
            self._beating.join()
        with suppress(RedisError):
            self._redis.eval(RELEASE, 1, self._key, self.start_id)

    def _beat(self) -> None:
        while not self._ended.wait(BROKER.heartbeat_interval_s):
            self._beat_once()

    def _beat_once(self) -> None:
        try:
            with self._turn:
                if self._machine:
                    self._claim(ttl_s=BROKER.heartbeat_ttl_s)
                    self._redis.set(self._known, b"", ex=OBSERVING.worker_seen_s)
                else:
                    self._redis.set(self._key, self.start_id, px=int(BROKER.heartbeat_ttl_s * 1000))
        except SetupError as error:
            _log.critical("%s", error)
            self._ended.set()
            os.kill(os.getpid(), signal.SIGTERM)  # its supervisor starts it again, and says so again
        except Exception as error:  # noqa: BLE001 - a socket ends in many ways, and all of them pass
            _log.warning("heartbeat of %s: %s; trying again in %g s", self.owner, error, BROKER.heartbeat_interval_s)

    def _claim(self, *, ttl_s: float) -> None:
        keys = self._key, self._bound, self._given_up
        arguments = self.start_id, int(ttl_s * 1000), self._machine, self._machine_id, socket.gethostname()
        while refused := self._redis.eval(_CLAIM, len(keys), *keys, *arguments):
            why, who = (part.decode(errors="replace") for part in cast("list[bytes]", refused))
            if why == "held":
                pid, *_, node = who.split("-", 3)
                where = f"pid {pid} on {node}, with another state folder or on another machine"
                raise SetupError(f"{self.owner} lives already: {where}; give each its own MIKROM_HOST")
            if why == "bound":
                machine, _, node = who.partition(" ")
                host = self.owner.removeprefix("host:")
                raise SetupError(
                    f"{host} is the name of another machine ({machine} on {node}; this is {self._machine_id}), or this"
                    " one lost its state folder: give this one its own MIKROM_HOST, or, once that one is off for good"
                    f" and its VMs may be made elsewhere, free the name: mikrom apply --assume-dead {host}"
                )
            _log.critical("%s was given up (--assume-dead): everything that runs here is stopped", self.owner)
            self._fence()
            self._redis.srem(self._given_up, who)

    def _new_start(self) -> str:
        return f"{os.getpid()}-{self._machine}-{secrets.token_hex(8)}-{socket.gethostname()}"


_log = logging.getLogger(__name__)

Progress = Callable[[ActionOutcome], None]


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    run: UnfinishedRun
    owner: str = ""
    start_id: str = ""


@contextmanager
def shown(
    redis: Redis, keys: Keys, worker: WorkerId, run: UnfinishedRun, progress: Progress, *, awaited: bool
) -> Iterator[Progress]:
    """Show that a run goes on for as long as the block does, and how far it is by the outcomes that go to `progress`.
    Where nobody waits for it, one that fails is shown until `tell` says why.
    """
    run, show_at = replace(run, state="running"), 0.0

    def show() -> None:
        nonlocal show_at
        show_at = time.monotonic() + RUNS.progress_interval_s
        entry = _Entry(run=run, owner=worker.owner, start_id=worker.start_id)
        try:
            redis.set(keys.unfinished(run.run_id), msgspec.json.encode(entry), ex=RUNS.unfinished_kept_s)
        except RedisError as error:
            _log.warning("how far the run is could not be told: %s", error, extra={"run": run.run_id})

    def heard(outcome: ActionOutcome) -> None:
        nonlocal run
        run = replace(run, done=run.done + 1, failed=run.failed + (outcome.result in FAILED))
        if time.monotonic() >= show_at:
            show()
        progress(outcome)

    show()
    try:
        yield heard
    finally:
        if awaited or sys.exception() is None:
            with suppress(RedisError):
                redis.delete(keys.unfinished(run.run_id))


def waiting_run(request: RunRequest, plan: Plan | None) -> UnfinishedRun:
    """A run that no control worker has begun."""
    planned, now = len(plan.actions) if plan else None, datetime.now(UTC)
    return UnfinishedRun(run_id=request.run_id, origin=request.origin, since=now, state="waiting", planned=planned)


def tell(redis: Redis, keys: Keys, run: UnfinishedRun) -> None:
    """Show a run that waits or has failed. Raises RedisError."""
    redis.set(keys.unfinished(run.run_id), msgspec.json.encode(_Entry(run=run)), ex=RUNS.unfinished_kept_s)


def unfinished_runs(redis: Redis, keys: Keys) -> tuple[UnfinishedRun, ...]:
    """Every run without a report, the latest first. Raises RedisError."""
    found = list(redis.scan_iter(match=keys.unfinished("*"), count=1000))
    packed: Any = redis.mget(found) if found else []
    entries = [_entry(key, entry) for key, entry in zip(found, packed, strict=True) if entry is not None]
    alive = starts(redis, keys, {entry.owner for entry in entries if entry.owner})
    died = "its control worker died; what was done stays done, run again"
    runs = (
        replace(entry.run, state="failed", error=died)
        if entry.owner and alive.get(entry.owner) != entry.start_id.encode()
        else entry.run
        for entry in entries
    )
    return tuple(sorted(runs, key=lambda run: run.since, reverse=True))


def _entry(key: bytes, packed: bytes) -> _Entry:
    run_id, why = key.decode(errors="replace").split(":")[-2], "cannot be shown: another release wrote it"
    run = UnfinishedRun(run_id=run_id, origin="unknown", since=datetime.now(UTC), state="failed", error=why)
    return decoded(packed, _Entry) or _Entry(run=run)


def source_state(redis: Redis, keys: Keys) -> SourceState | None:
    """What the last look gave; None before the first."""
    packed, next_run = cast("list[bytes | None]", redis.mget(keys.source, keys.next_run))
    state = decoded(packed, SourceState)
    return replace(state, next_at=datetime.fromtimestamp(float(next_run), UTC)) if state and next_run else state


def writable_source_state(redis: Redis, keys: Keys) -> SourceState | None:
    """As `source_state`, of a Redis that takes what is written, too; None for a host's user. Raises RedisError."""
    with suppress(NoPermissionError):
        redis.set(f"{keys.prefix}:tried", b"", px=1)
        return source_state(redis, keys)
    return None


class HostCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one host: its memory and what is promised of it; with a project, its VMs by fleet and phase."""

    mem_size_mib: int = 0
    promised_mib: int = 0
    fleets: dict[str, dict[Phase, int]] = {}


def remember_counts(redis: Redis, keys: Keys, project: str, reports: Iterable[HostReport]) -> None:
    """Keep what reports to a run of `project` say."""
    found: dict[str, HostCounts] = {}
    for report in reports:
        memory_mib, promised_mib = report.capacity.mem_size_mib, report.promised.mem_size_mib
        found[report.host] = HostCounts(mem_size_mib=memory_mib, promised_mib=promised_mib)
        found[f"{report.host} {project}"] = HostCounts(fleets=report.phases)
    with suppress(RedisError):  # the run goes on, and says so itself if it cannot
        if found:
            redis.hset(keys.vms, mapping={name: msgspec.json.encode(one) for name, one in found.items()})


def counts(redis: Redis, keys: Keys, hosts: Iterable[str]) -> dict[tuple[str, str], HostCounts]:
    """By host and project ("" for the host itself). Raises RedisError."""
    found: Any = redis.hgetall(keys.vms)
    named = {tuple(field.decode().partition(" ")[::2]): one for field, one in found.items()}
    wanted = {*hosts}
    kept = ((name, decoded(one, HostCounts)) for name, one in sorted(named.items()) if name[0] in wanted)
    return {(host, project): one for (host, project), one in kept if one}

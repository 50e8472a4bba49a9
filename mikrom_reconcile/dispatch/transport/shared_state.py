"""What workers leave in Redis for everybody who looks: unfinished runs, the state of the source, VMs as last seen.

A run without a report waits, goes on, or has ended without one; its key is gone once the report is kept. A run whose
control worker is not the one that began it has died with it. All of it may be lost. It must never decide anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec.structs import replace
from redis import RedisError
from redis.exceptions import NoPermissionError

from mikrom_reconcile.core.model.encoding import ready
from mikrom_reconcile.core.model.observed import HostReport, Phase
from mikrom_reconcile.core.model.run import ActionOutcome, RunRequest, UnfinishedRun
from mikrom_reconcile.core.model.specs import SourceState
from mikrom_reconcile.dispatch.transport.heartbeats import starts
from mikrom_reconcile.dispatch.transport.rpc import WorkerId
from mikrom_reconcile.output.run_result import FAILED
from mikrom_reconcile.times_and_sizes import RUNS

if TYPE_CHECKING:
    from redis import Redis

    from mikrom_reconcile.dispatch.transport.redis_keys import Keys

_log = logging.getLogger(__name__)

_DIED = "its control worker died; what was done stays done, run again"


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    run: UnfinishedRun
    owner: str = ""
    start_id: str = ""


class RunStatus:
    """One run from here on. Inside its `with` block it goes on; left without an exception it has a report."""

    def __init__(self, redis: Redis, keys: Keys, worker: WorkerId, run: UnfinishedRun) -> None:
        self._redis = redis
        self._key = keys.unfinished(run.run_id)
        self._entry = _Entry(run=replace(run, state="running"), owner=worker.owner, start_id=worker.start_id)
        self._tell_at = 0.0

    def __enter__(self) -> Self:
        self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RedisError):
            self._redis.delete(self._key)

    def heard(self, outcome: ActionOutcome) -> None:
        """Count an outcome."""
        run = self._entry.run
        failed = run.failed + (outcome.result in FAILED)
        self._entry = replace(self._entry, run=replace(run, done=run.done + 1, failed=failed))
        if time.monotonic() >= self._tell_at:
            self._tell()

    def _tell(self) -> None:
        self._tell_at = time.monotonic() + RUNS.progress_interval_s
        try:
            self._redis.set(self._key, msgspec.json.encode(self._entry), ex=RUNS.unfinished_kept_s)
        except RedisError as error:
            _log.warning("how far the run is could not be told: %s", error, extra={"run": self._entry.run.run_id})


def waiting_run(request: RunRequest, planned: int | None) -> UnfinishedRun:
    """A run that no control worker has begun."""
    return UnfinishedRun(
        run_id=request.run_id, origin=request.origin, since=datetime.now(UTC), state="waiting", planned=planned
    )


def tell(redis: Redis, keys: Keys, run: UnfinishedRun) -> None:
    """Show a run that waits or has failed. Raises RedisError."""
    redis.set(keys.unfinished(run.run_id), msgspec.json.encode(_Entry(run=run)), ex=RUNS.unfinished_kept_s)


def unfinished_runs(redis: Redis, keys: Keys) -> tuple[UnfinishedRun, ...]:
    """Every run without a report, the latest first. Raises RedisError."""
    found = list(redis.scan_iter(match=keys.unfinished("*"), count=1000))
    packed: Any = redis.mget(found) if found else []
    entries = [_entry(key, entry) for key, entry in zip(found, packed, strict=True) if entry is not None]
    alive = starts(redis, keys, {entry.owner for entry in entries if entry.owner})
    runs = (
        replace(entry.run, state="failed", error=_DIED)
        if entry.owner and alive.get(entry.owner) != entry.start_id.encode()
        else entry.run
        for entry in entries
    )
    return tuple(sorted(runs, key=lambda run: run.since, reverse=True))


def _entry(key: bytes, packed: bytes) -> _Entry:
    try:
        return msgspec.json.decode(packed, type=ready(_Entry))
    except msgspec.MsgspecError:
        run_id, why = key.decode(errors="replace").split(":")[-2], "cannot be shown: another release wrote it"
        run = UnfinishedRun(run_id=run_id, origin="unknown", since=datetime.now(UTC), state="failed", error=why)
        return _Entry(run=run)


def source_state(redis: Redis, keys: Keys) -> SourceState | None:
    """What the last look gave; None before the first."""
    found: Any = redis.mget(keys.source, keys.next_run)
    try:
        state = msgspec.json.decode(found[0], type=ready(SourceState)) if found[0] else None
        if state is None or found[1] is None:
            return state
        return replace(state, next_at=datetime.fromtimestamp(float(found[1]), UTC))
    except msgspec.MsgspecError:  # another release wrote it
        return None


def writable_source_state(redis: Redis, keys: Keys) -> SourceState | None:
    """As `source_state`, of a Redis that takes what is written, too: a full or read-only one answers all the same.

    None for the user of a host, who may not ask. Raises RedisError.
    """
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
        found[report.host] = HostCounts(
            mem_size_mib=report.capacity.mem_size_mib, promised_mib=report.promised.mem_size_mib
        )
        found[f"{report.host} {project}"] = HostCounts(fleets=report.phases)
    with suppress(RedisError):  # the run goes on, and says so itself if it cannot
        if found:
            redis.hset(keys.vms, mapping={name: msgspec.json.encode(one) for name, one in found.items()})


def counts(redis: Redis, keys: Keys, hosts: Iterable[str]) -> dict[tuple[str, str], HostCounts]:
    """By host and project ("" for the host itself). Raises RedisError."""
    found: Any = redis.hgetall(keys.vms)
    named = {tuple(field.decode().partition(" ")[::2]): one for field, one in found.items()}
    with suppress(msgspec.MsgspecError):  # another release wrote it
        wanted = {*hosts}
        return {
            (host, project): msgspec.json.decode(one, type=ready(HostCounts))
            for (host, project), one in sorted(named.items())
            if host in wanted
        }
    return {}

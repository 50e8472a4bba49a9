"""Runs that have no report yet, told to everybody who looks: they wait, go on, or have ended without one.

Each has a key of its own in Redis, which is gone once the report is kept. A run whose control worker is not the one
that began it has died with it. It must never decide anything.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec.structs import replace
from redis import RedisError

from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.run import ActionOutcome, RunRequest, UnfinishedRun
from mikrom_reconcile.dispatch.transport.heartbeats import starts
from mikrom_reconcile.limits import RUNS
from mikrom_reconcile.output.run_result import FAILED

if TYPE_CHECKING:
    from redis import Redis

    from mikrom_reconcile.dispatch.app import FleetApp
    from mikrom_reconcile.dispatch.transport.redis_keys import Keys

_log = logging.getLogger(__name__)

_DIED = "its control worker died; what was done stays done, run again"


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    run: UnfinishedRun
    owner: str = ""
    start_id: str = ""


class Unfinished:
    """One run from here on. Inside its `with` block it goes on; left without an exception it has a report."""

    def __init__(self, app: FleetApp, request: RunRequest, planned: int | None) -> None:
        self._redis = app.redis
        self._key = app.keys.unfinished(request.run_id)
        run = waiting_run(request, planned)
        owner = app.heartbeat
        self._entry = _Entry(run=replace(run, state="running"), owner=owner.owner, start_id=owner.start_id)
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


def _entry(key: bytes, packed: bytes) -> _Entry:
    try:
        return msgspec.json.decode(packed, type=ready(_Entry))
    except msgspec.MsgspecError:
        run_id, why = key.decode(errors="replace").split(":")[-2], "cannot be shown: another release wrote it"
        run = UnfinishedRun(run_id=run_id, origin="unknown", since=datetime.now(UTC), state="failed", error=why)
        return _Entry(run=run)


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

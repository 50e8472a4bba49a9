"""The specs of scheduled runs, kept in step among control workers, and what is known of their source, for who looks.

Each control worker keeps the last good revision on its disk; Redis has it, too, so that one whose source is away uses
what another has seen since. Either may be lost. It must never make a plan of a source that cannot be read.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace
from redis import RedisError
from redis.exceptions import NoPermissionError

from mikrom_reconcile.control.sources.last_good import Good
from mikrom_reconcile.core.model.digests import texts_digest
from mikrom_reconcile.core.model.errors import MikromError, SourceError
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.specs import SourceState, SourceTree
from mikrom_reconcile.dispatch.transport import rpc
from mikrom_reconcile.dispatch.transport.redis_keys import Keys

if TYPE_CHECKING:
    from redis import Redis

    from mikrom_reconcile.dispatch.app import FleetApp

_log = logging.getLogger(__name__)


def sync_source_task(task: Any) -> dict[str, Any]:
    """Look at MIKROM_SPECS now; every scheduled run begins with the same look."""
    try:
        tree, problem = specs_now(task.app)
    except SourceError as error:
        return {"revision": "", "problem": str(error)}
    return {"revision": tree.revision, "problem": problem}


def specs_now(app: FleetApp) -> tuple[SourceTree, str]:
    """The specs to use, and why they are the last good ones instead of those that are there now; "" if they are not.

    Raises SourceError when nothing good is known.
    """
    before = source_state(app.redis, app.keys)
    good, problem, broken = app.parts.source.poll(before.number if before else 0)
    if problem and (other := _shared(app)) is not None:
        app.parts.source.take(other)
        good = max((other, *([good] if good else [])), key=lambda one: one.number)
    _note(app, before, good, problem, broken)
    if good is None:
        raise SourceError(f"{problem}; no good revision of it is known, so nothing is planned")
    if problem:
        _log.warning("the source is broken, revision %s is used: %s", good.tree.revision, problem)
    return good.tree, problem


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


def tried(redis: Redis, keys: Keys) -> SourceState | None:
    """As `source_state`, of a Redis that takes what is written, too: a full or read-only one answers all the same.

    None for the user of a host, who may not ask. Raises RedisError.
    """
    with suppress(NoPermissionError):
        redis.set(f"{keys.prefix}:tried", b"", px=1)
        return source_state(redis, keys)
    return None


def _shared(app: FleetApp) -> Good | None:
    found: Any = app.redis.get(app.keys.good_specs)
    try:
        return rpc.unpack(found, Good) if found else None
    except MikromError:
        return None


def _note(app: FleetApp, before: SourceState | None, good: Good | None, problem: str, broken: str) -> None:
    """Tell the others. A Redis that is away ends the run soon enough, and says so itself."""
    now, highest = datetime.now(UTC), before.number if before else 0
    state = SourceState(
        name=app.settings.specs or "",
        revision=good.tree.revision if good else "",
        number=max(highest, good.number if good else 0),
        digest=texts_digest(good.tree) if good else "",
        since=good.since if good else None,
        good_at=now if not problem else before.good_at if before else None,
        looked_at=now,
        problem=problem,
        broken=broken,
    )
    try:
        if good and (good.number > highest or not app.redis.exists(app.keys.good_specs)):
            app.redis.set(app.keys.good_specs, rpc.pack(good))
        app.redis.set(app.keys.source, msgspec.json.encode(state))
    except (RedisError, MikromError) as error:
        _log.warning("the state of the source could not be told: %s", error)

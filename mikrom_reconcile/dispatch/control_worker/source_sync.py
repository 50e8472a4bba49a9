"""The specs of scheduled runs, kept in step among control workers, and what is known of their source, for who looks.

Each control worker keeps the last good revision on its disk; Redis has it, too, so that one whose source is away uses
what another has seen since. Either may be lost. It must never make a plan of a source that cannot be read.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from redis import RedisError

from mikrom_reconcile.control.sources.last_good import Good, LastGood
from mikrom_reconcile.core.model.digests import texts_digest
from mikrom_reconcile.core.model.errors import MikromError, SourceError
from mikrom_reconcile.core.model.specs import SourceState, SourceTree
from mikrom_reconcile.dispatch.transport import rpc
from mikrom_reconcile.dispatch.transport.redis_keys import Keys
from mikrom_reconcile.dispatch.transport.shared_state import source_state

if TYPE_CHECKING:
    from redis import Redis

_log = logging.getLogger(__name__)


class SourceSync:
    """MIKROM_SPECS, called `name`, as this control worker and the others see it."""

    def __init__(self, redis: Redis, keys: Keys, source: LastGood, name: str) -> None:
        self._redis = redis
        self._keys = keys
        self._source = source
        self._name = name

    def specs_now(self) -> tuple[SourceTree, str]:
        """The specs to use, and why they are the last good ones instead of those that are there now, else "".

        Raises SourceError when nothing good is known.
        """
        before = source_state(self._redis, self._keys)
        good, problem, broken = self._source.poll(before.number if before else 0)
        if problem and (other := self._shared()) is not None:
            self._source.take(other)
            good = max((other, *([good] if good else [])), key=lambda one: one.number)
        self._share(before, good, problem, broken)
        if good is None:
            raise SourceError(f"{problem}; no good revision of it is known, so nothing is planned")
        if problem:
            _log.warning("the source is broken, revision %s is used: %s", good.tree.revision, problem)
        return good.tree, problem

    def _shared(self) -> Good | None:
        found: Any = self._redis.get(self._keys.good_specs)
        try:
            return rpc.unpack(found, Good) if found else None
        except MikromError:
            return None

    def _share(self, before: SourceState | None, good: Good | None, problem: str, broken: str) -> None:
        """Tell the others. A Redis that is away ends the run soon enough, and says so itself."""
        now, highest = datetime.now(UTC), before.number if before else 0
        state = SourceState(
            name=self._name,
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
            if good and (good.number > highest or not self._redis.exists(self._keys.good_specs)):
                self._redis.set(self._keys.good_specs, rpc.pack(good))
            self._redis.set(self._keys.source, msgspec.json.encode(state))
        except (RedisError, MikromError) as error:
            _log.warning("the state of the source could not be told: %s", error)

"""How one run looks at its project: asks the hosts, and plans from what they report.

It looks as often as the run has passes. The specs are read once, and all of them only if what the hosts report does not
concern a few fleets alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import msgspec

from mikrom_reconcile import traces
from mikrom_reconcile.core.model.observed import ObservedState, ObserveQuery, Placements
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.core.planning.guards import Limits
from mikrom_reconcile.core.planning.known_question import Cache, KnownQuestion, key_of, known_question, narrowed
from mikrom_reconcile.core.planning.planner import Decision, Question, decide, question, thorough
from mikrom_reconcile.core.planning.selection import Selection, refuse_unknown
from mikrom_reconcile.core.specs.load import Specs, hosts_of, some_specs

Observe = Callable[[Mapping[str, ObserveQuery], tuple[str, ...]], ObservedState]
"""Asks the hosts in the queries, but not those that are to be done without."""


class Look:
    """Call it for what is to be done now. `read` reads and checks the specs of the request, `memory` tells where a
    project's VMs are remembered, and which hosts live.
    """

    def __init__(
        self,
        request: RunRequest,
        *,
        here: str,
        schemas: Mapping[str, str],
        cache: Cache,
        read: Callable[[RunRequest], Specs],
        observe: Observe,
        memory: Callable[[str], tuple[Placements, tuple[str, ...]]],
    ) -> None:
        self._request = request
        self._here = here
        self._schemas = schemas
        self._cache = cache
        self._read = read
        self._observe = observe
        self._memory = memory
        self._key = key_of(request.tree, request.extra_vars, schemas, here)
        self._known = self._earlier() if _is_ordinary(request) else None

    @cached_property
    def project(self) -> str:
        """The project that the specs are of."""
        return self._known.project if self._known else self._specs.project

    def __call__(self, tried: frozenset[str] = frozenset()) -> Decision:
        """Observe every host and plan from what they report, after these VMs were `tried` in this run.

        Raises SpecError, and UsageError for unknown hosts.
        """
        with traces.span("plan"):
            return self._decided(tried)

    def _decided(self, tried: frozenset[str]) -> Decision:
        limits = self._limits(tried)
        placements, living = self._memory(self.project)
        known, observed = self._known, None
        if known is not None and known.follows_from(placements) and known.queries.keys() >= {*living}:
            observed = self._observe(known.queries, ())
            if (decision := self._narrowed(known, observed, placements, limits)) is not None:
                return decision
        hosts = hosts_of(self._specs, self._here)
        refuse_unknown("--without-host", self._request.without_hosts, hosts, "the inventory has no host {}")
        dead = self._request.assume_dead + self._request.without_hosts
        destroy = self._request.destroy
        asked = question(
            self._specs, placements, here=self._here, destroy=destroy, dead=dead, living=() if destroy else living
        )
        if known is None or known.queries != asked.queries:
            observed = None
            self._remember(asked)
        decision = self._decide(asked, limits, observed)
        return self._decide(thorough(asked, decision.doubtful), limits) if decision.doubtful else decision

    @cached_property
    def _specs(self) -> Specs:
        return self._read(self._request)

    def _earlier(self) -> KnownQuestion | None:
        """What was asked of the same specs before."""
        content = self._cache.get(self._key)
        try:
            return None if content is None else msgspec.msgpack.decode(content, type=ready(KnownQuestion))
        except msgspec.MsgspecError:
            return None

    def _remember(self, asked: Question) -> None:
        if _is_ordinary(self._request) and (known := known_question(asked)) is not None:
            self._known = known
            self._cache.put(self._key, msgspec.msgpack.encode(known))

    def _narrowed(
        self, known: KnownQuestion, observed: ObservedState, placements: Placements, limits: Limits
    ) -> Decision | None:
        """What is decided from the specs of what differs alone, if it can be."""
        fleets = known.differing(observed)
        if fleets is None:
            return None
        some = some_specs(self._request.tree, self._schemas, self._request.extra_vars, fleets)
        return narrowed(known, some, observed, placements, limits, self._here)

    def _decide(self, asked: Question, limits: Limits, observed: ObservedState | None = None) -> Decision:
        request = self._request
        selection = Selection(limit=request.limit, tags=request.tags, skip_tags=request.skip_tags)
        seen = observed or self._observe(asked.queries, request.without_hosts)
        return decide(asked, seen, limits, selection)

    def _limits(self, tried: frozenset[str]) -> Limits:
        request = self._request
        return Limits(
            prune_max=request.prune_max,
            confirmed=request.confirmed,
            all_removals=request.destroy,
            retry=request.retry,
            tried=tried,
        )


def _is_ordinary(request: RunRequest) -> bool:
    """Whether all VMs of the specs are asked for as they are."""
    narrow = request.limit is not None or request.tags or request.skip_tags
    return not (narrow or request.destroy or request.assume_dead or request.without_hosts)

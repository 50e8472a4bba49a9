"""How one run plans its project: asks the hosts, and plans from what they report, once for each pass.

A process that goes on, such as a control worker, keeps what it prepared last: where neither the specs nor the
placements of the project have changed, it begins there. What was prepared is used as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from mikrom_reconcile import traces
from mikrom_reconcile.core.model.observed import ObservedState, ObserveQuery, Placements
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.core.planning.context import PlanInput, PlanResult, RunOverrides
from mikrom_reconcile.core.planning.planner import make_plan, prepare, requery_all
from mikrom_reconcile.core.planning.selection import refuse_unknown
from mikrom_reconcile.core.specs.load import Specs, hosts_of

Observe = Callable[[Mapping[str, ObserveQuery], tuple[str, ...]], ObservedState]
"""Asks the hosts in the queries, but not those that are to be done without."""


class PlanMemory:
    """What was prepared last in this process."""

    def __init__(self) -> None:
        self.last: PlanInput | None = None


class PlanSession:
    """Each call asks the hosts and plans anew. `read` reads and validates the specs of the request, `recall` says where
    a project's VMs are remembered, and which hosts are alive.
    """

    def __init__(
        self,
        request: RunRequest,
        *,
        here: str,
        memory: PlanMemory,
        read: Callable[[RunRequest], Specs],
        observe: Observe,
        recall: Callable[[str], tuple[Placements, tuple[str, ...]]],
    ) -> None:
        self._request = request
        self._here = here
        self._memory = memory
        self._read = read
        self._observe = observe
        self._recall = recall

    @cached_property
    def specs(self) -> Specs:
        """The specs of the request. Raises SpecError, and UsageError for unknown hosts."""
        request, last = self._request, self._memory.last
        specs = last.specs if last and _is_of(last.specs, request) else self._read(request)
        hosts = hosts_of(specs, self._here)
        refuse_unknown("--without-host", request.without_hosts, hosts, "the inventory has no host {}")
        return specs

    def __call__(self, tried: frozenset[str] = frozenset()) -> PlanResult:
        """Observe every host and plan from what they report, after these VMs were `tried` in this run.

        Raises what `specs` raises.
        """
        with traces.span("plan"):
            given = self._prepare()
            result = self._plan(given, tried)
            return self._plan(requery_all(given), tried) if result.ambiguous else result

    def _prepare(self) -> PlanInput:
        specs, request, last = self.specs, self._request, self._memory.last
        placements, living = self._recall(specs.project)
        dead, destroy = request.assume_dead + request.without_hosts, request.destroy
        now = (placements, dead, living, destroy)
        if last and last.specs is specs and now == (last.placements, last.dead, last.living, last.destroy):
            return last
        given = prepare(specs, placements, here=self._here, destroy=destroy, dead=dead, living=living)
        self._memory.last = given
        return given

    def _plan(self, given: PlanInput, tried: frozenset[str]) -> PlanResult:
        request = self._request
        overrides = RunOverrides(
            prune_max=request.prune_max,
            confirmed=request.confirmed,
            retry=request.retry,
            tried=tried,
            limit=request.limit,
            tags=request.tags,
            skip_tags=request.skip_tags,
        )
        return make_plan(given, self._observe(given.queries, request.without_hosts), overrides)


def _is_of(specs: Specs, request: RunRequest) -> bool:
    """Whether reading the tree of the request would give these specs."""
    same_variables = repr(specs.extra_vars) == repr(request.extra_vars)  # 1, 1.0 and true are equal in Python
    return same_variables and specs.tree == request.tree

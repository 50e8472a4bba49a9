"""What a plan is made from, and the draft that its stages hand on: the words that all of planning shares."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM, Share
from mikrom_reconcile.core.model.observed import ObserveQuery, Placements
from mikrom_reconcile.core.model.plan import ChangeKind, Peak, Plan, Refusal, VMChange
from mikrom_reconcile.core.placement.scheduler import Placing
from mikrom_reconcile.core.planning.project_view import Expected, ProjectView
from mikrom_reconcile.core.specs.expand import UnplacedVM
from mikrom_reconcile.core.specs.load import FleetSpec, Specs, hosts_of


class RunOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """What this run does otherwise than the fleets' own policies say, and what it leaves out.

    `prune_max` replaces every fleet's share; `confirmed` names fleets whose removals a person has confirmed. `retry`
    brings back what was given up, once: VMs that this run has `tried` are given up again if that failed. `limit` is a
    pattern of hosts, groups, fleets and VM names, `tags` and `skip_tags` are those of fleets; None and () are all.
    """

    prune_max: Share | None = None
    confirmed: tuple[str, ...] = ()
    retry: bool = False
    tried: frozenset[str] = frozenset()
    limit: str | None = None
    tags: tuple[str, ...] = ()
    skip_tags: tuple[str, ...] = ()


class PlanInput(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a project before its hosts are asked, and what to ask them.

    `here` is the host of specs without an Inventory. `unplaced` are all VMs of the specs; `rendered` has those that are
    remembered on hosts where they may stay, as they are wanted there, and `expected` what follows from that for each
    host. `dead` names hosts whose VMs count as gone unless they answer, `living` those that can be asked. `destroy`
    wants everything gone that the specs own. `warnings` are those of the specs.
    """

    specs: Specs
    here: str
    placements: Placements
    dead: tuple[str, ...]
    living: tuple[str, ...]
    destroy: bool
    unplaced: tuple[UnplacedVM, ...]
    rendered: dict[str, DesiredVM]
    expected: dict[str, Expected]
    queries: dict[str, ObserveQuery]
    warnings: tuple[str, ...]


class PlanContext(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What all stages of one plan read.

    `placements` are those of `given` without hosts that are assumed dead and did not answer.
    """

    given: PlanInput
    view: ProjectView
    placements: Placements
    overrides: RunOverrides

    @property
    def specs(self) -> Specs:
        """The specs that the plan is of."""
        return self.given.specs

    @cached_property
    def fleets(self) -> dict[str, FleetSpec]:
        """The fleets of the specs by name."""
        return {fleet.name: fleet for fleet in self.specs.fleets}

    @cached_property
    def removed_hosts(self) -> frozenset[str]:
        """Hosts that answered, and left the inventory."""
        return frozenset(self.view.reports.keys() - set(hosts_of(self.specs, self.given.here)))

    @cached_property
    def possible_on(self) -> tuple[str, ...]:
        """Unreachable hosts on which VMs may exist that nobody remembers."""
        known = {*self.given.placements.covers, *self.given.dead}
        return tuple(sorted(self.view.unreachable.keys() - known))


class PlanResult(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, and what its execution needs: the placements to remember first, and the tokens seen so far.

    `unmatched` says what is wrong with the selection. An `ambiguous` plan cannot be trusted: `requery_all` and plan
    again. `retry_after_s` is when VMs may be healthy that boot, or for which a rollout waits; None for none.
    """

    plan: Plan
    placements: Placements
    highest_token: int
    unmatched: str = ""
    ambiguous: bool = False
    retry_after_s: float | None = None


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as far as its stages have come.

    `desired` is all that the specs want, each VM on its host; nothing for a destroy. `placing` says why on which hosts.
    `left_out` are changes outside of the selection; `selected` is how many VMs that names (None: all), `unmatched` what
    is wrong with it. `unchanged` counts VMs by host. `retry_after_s` is when a batch may be healthy for which a rollout
    waits.
    """

    desired: Sequence[DesiredVM] = ()
    placing: Placing = Placing(hosts=[])
    changes: list[VMChange] = []
    left_out: list[VMChange] = []
    selected: int | None = None
    unmatched: str = ""
    unchanged: dict[str, int] = {}
    refusals: tuple[Refusal, ...] = ()
    peaks: dict[str, Peak] = {}
    retry_after_s: float | None = None


def with_kind(change: VMChange, kind: ChangeKind, reason: str) -> VMChange:
    """The change with another kind, and why; the one that it had is what is `wanted`."""
    return msgspec.structs.replace(change, kind=kind, wanted=change.kind, reasons=(*change.reasons, reason))

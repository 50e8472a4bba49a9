"""Bugs that the judge has to catch, each by the guarantee that it breaks: what is put in place of which function.

A variant gets the real function first, so that it stays small and follows the code when that moves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

from msgspec.structs import replace

from mikrom_reconcile.core.planning import context, leases, one_off, planner, rollout, rules
from mikrom_reconcile.dispatch.transport.rpc import ReplySender
from mikrom_reconcile.host import observe
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.host.orders import execute, preconditions, steps
from mikrom_reconcile.host.resources.provisioner import Secrets

Variant = Callable[..., Any]


class Bug(NamedTuple):
    """`variants` is by function: `(where, name)`, of an object or of a dict, to what takes the real one's place."""

    guarantee: str
    variants: tuple[tuple[Any, str, Variant], ...]


def _nothing(real: Variant, *args: Any, **options: Any) -> None:
    return None


def _rows_win(real: Variant, view: Any, placements: Any) -> Any:
    """As it was until 2026-11-29: an older copy hides what is remembered on an unreachable host."""
    return real(view, placements) | {name: rows[0].host for name, rows in view.own.items()}


def _rows_only(real: Variant, view: Any, placements: Any) -> Any:
    return {name: rows[0].host for name, rows in view.own.items()}


def _all_run(real: Variant, rows: Any) -> Any:
    return real([replace(row, phase="running", drift=()) for row in rows])


def _first(real: Variant, draft: Any, *_: Any) -> Any:
    return draft


def _desired_as_it_is(real: Variant, desired: Any, observed: Any) -> Any:
    return desired


def _whose_ever(real: Variant, order: Any, found: Any, *, tombstone: Any, highest_token: int) -> Any:
    """A VM of another project is taken for one of this."""
    if getattr(found, "project", order.action.project) != order.action.project:
        return None
    return real(order, found, tombstone=tombstone, highest_token=highest_token)


def _however_late(real: Variant, order: Any, found: Any, **known: Any) -> Any:
    """What an order expects to find, and how new it is, is asked for of other projects' VMs only."""
    ending, is_ours = real(order, found, **known), getattr(found, "project", "") == order.action.project
    return None if is_ours and ending and ending.result == "stale" else ending


def _same_generation(real: Variant, order: Any, found: Any) -> Any:
    return real(order, found) | {"generation": found.generation}


def _tells(real: Variant, self: Any, value: Any) -> Any:
    found = real(self, value)
    logging.getLogger("mikrom_reconcile.host").warning("resolved %s", found)
    return found


def _kept_resolved(real: Variant, order: Any, found: Any, **options: Any) -> Any:
    """A record with the secret itself."""
    record, secrets = real(order, found, **options), _SECRETS[-1]
    return replace(record, spec=replace(record.spec, mmds=secrets.resolved(record.spec.mmds)))


_SECRETS: list[Secrets] = []


def _remembers_secrets(real: Variant, self: Any, *args: Any, **options: Any) -> None:
    real(self, *args, **options)
    _SECRETS.append(self)


def _as_planned(real: Variant, self: Any, change: Any) -> Any:
    return change


def _no(real: Variant, *args: Any, **options: Any) -> bool:
    return False


def _yes(real: Variant, *args: Any, **options: Any) -> bool:
    return True


def _unchanged(real: Variant, *_: Any) -> str:
    return rules.UNCHANGED


def _none_held(real: Variant, *_: Any) -> dict[str, Any]:
    return {}


BUGS: dict[str, Bug] = {
    "an older copy is started while the newer is dark": Bug("G1", ((context.ProjectView, "locations", _rows_win),)),
    "a host that was given up goes on when it is back": Bug("G1", ((HostAgent, "stop_all", _nothing),)),
    "what is remembered of dark hosts is forgotten": Bug("G3", ((context.ProjectView, "locations", _rows_only),)),
    "what may be on a host that nobody knows is made": Bug("G3", ((rules.RULES, "possible-duplicate", _nothing),)),
    "drift is no difference": Bug("G2", ((rules.RULES, "drift", _unchanged),)),
    "what is down stays down": Bug("G2", ((rules.RULES, "down", _unchanged),)),
    "digests say that all is well": Bug("G2", ((observe, "fleet_digests", _all_run),)),
    "what ought to be gone stays": Bug("G2", ((rules.RULES, "not-in-specs", _unchanged),)),
    "any number may be down": Bug("G4", ((rollout._Rollout, "_paced", _as_planned),)),
    "those that are down already do not count": Bug("G4", ((context.ProjectView, "is_down", _no),)),
    "any number is removed": Bug("G4", ((planner, "prune", _first),)),
    "protection goes with its block": Bug("G5", ((planner, "effective", _desired_as_it_is),)),
    "protection is a word": Bug(
        "G5", ((planner, "protect", _first), (one_off, "protected", _first), (preconditions, "loses_disks", _no))
    ),
    "a name is anybody's": Bug(
        "G6", ((rules.RULES, "name-conflict", _nothing), (execute, "rejection_of", _whose_ever))
    ),
    "a change is no new generation": Bug("G7", ((steps, "provenance_fields", _same_generation),)),
    "an order has an effect however late it comes": Bug(
        "G7", ((execute, "rejection_of", _however_late), (ReplySender, "is_awaited", _yes))
    ),
    "what was done is done again": Bug("G7", ((steps.ActionRun, "_is_done", _no),)),
    "what failed is tried on the next": Bug(
        "G8", ((rollout._Rollout, "_has_failed", _no), (context.ProjectView, "is_down", _no))
    ),
    "an attempt that failed is not noted": Bug(
        "G8", ((steps.ActionRun, "note_failure", _nothing), (context.ProjectView, "is_down", _no))
    ),
    "a leased address is free": Bug(
        "G9", ((leases, "held_addresses", _none_held), (leases, "seen_addresses", _none_held))
    ),
    "a log tells a secret": Bug("G10", ((Secrets, "resolved", _tells),)),
    "a record keeps a secret": Bug(
        "G10", ((Secrets, "__init__", _remembers_secrets), (steps, "next_record", _kept_resolved))
    ),
}  # fmt: skip


@contextmanager
def seeded(bug: Bug) -> Iterator[None]:
    """The code with this bug."""
    with ExitStack() as stack:
        for where, name, variant in bug.variants:
            if isinstance(where, Mapping):
                stack.enter_context(patch.dict(where, {name: partial(variant, where[name])}))
            else:
                stack.enter_context(patch.object(where, name, _bound(variant, getattr(where, name))))
        yield


def _bound(variant: Variant, real: Variant) -> Variant:
    """A function, so that it is also a method."""
    return lambda *args, **options: variant(real, *args, **options)

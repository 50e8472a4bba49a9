"""A plan that found nothing to do holds for as long as nothing moves: the request, the specs, what is remembered of
placements, and every host's digests. Then the specs need not even be read, and the cost follows the hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from mikrom_reconcile import __version__
from mikrom_reconcile.core.digests import digest_of
from mikrom_reconcile.core.model.observed import ObservedState, ObserveQuery
from mikrom_reconcile.core.model.plan import Plan
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.core.plan import Question


class Standstill(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked when there was nothing to do, the digest of the placements it was asked from, and the plan."""

    placements: str
    queries: dict[str, ObserveQuery]
    plan: Plan

    def holds(self, observed: ObservedState) -> bool:
        """Whether every host answers just what was expected of it then."""
        reports = {view.host: view.report for view in observed.hosts}
        return reports.keys() == self.queries.keys() and all(
            report is not None and not report.vms and report.digests == self.queries[host].known
            for host, report in reports.items()
        )


def key_of(request: RunRequest, schemas: Mapping[str, str], here: str) -> str:
    """The same for requests that give the same plan in the same world."""
    texts = blake2b(digest_size=16)
    for file in request.tree.files:
        texts.update(f"{len(file.path)} {file.path}{len(file.text)} {file.text}".encode())
    bare_tree = SourceTree(revision=request.tree.revision, files=())
    asked = msgspec.structs.replace(request, run_id="", origin="", tree=bare_tree)
    return digest_of((__version__, schemas, here, asked, texts.hexdigest())).partition(":")[2]


def standstill(asked: Question, plan: Plan) -> Standstill | None:
    """What to remember of a plan; None if there is anything in it that somebody should look at."""
    if plan.changes or plan.refusals or plan.warnings or plan.unreachable:
        return None
    return Standstill(placements=digest_of(asked.placements), queries=asked.queries, plan=plan)

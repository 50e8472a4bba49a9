"""What there is at one moment and what a run would do about it, as the page of the status shows it."""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.control.sources.last_good import problem_in
from mikrom_reconcile.core.model import documents, errors, observed
from mikrom_reconcile.core.model.plan import Plan, RunRequest
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.core.specs.inventory import Inventory
from mikrom_reconcile.core.specs.load import Specs
from mikrom_reconcile.output import pages, run_result, tables
from mikrom_reconcile.output.plan import rollout_of
from mikrom_reconcile.times_and_sizes import OBSERVING, OUTPUT


class Snapshots:
    """Looks at everything, for specs of `here`, one look at a time. It keeps the specs that it has read."""

    def __init__(self, engine: Callable[[], Engine], schemas: Mapping[str, str], here: str) -> None:
        self._engine, self._schemas, self._here = engine, schemas, here
        self._specs: Specs | None = None
        self._counts: Counter[str] = Counter()

    def take(self, tree: documents.SourceTree | None, problem: str = "") -> pages.Snapshot:
        """What there is now. Without a `tree` there is no plan, and `problem` says why. Raises MikromError."""
        engine, specs, plan = self._engine(), None, None
        if tree is not None:
            try:
                specs = self._read(tree)
                plan = engine.plan(RunRequest(run_id=f"status-{secrets.token_hex(6)}", origin="status", tree=tree))
            except errors.MikromError as error:
                problem = problem_in(error)
        queries = {host: observed.ObserveQuery() for host in engine.hosts.names()}
        views = sorted(engine.hosts.observe(queries, deadline_s=OBSERVING.deadline_s), key=lambda view: view.host)
        return pages.Snapshot(
            taken_at=datetime.now(UTC),
            views=tuple(views),
            fleets=tables.fleets_in(views, self._wanted(specs, plan)),
            inventory=specs.inventory if specs else Inventory(),
            plan=plan,
            problem=problem,
            runs=tuple(run_result.settled(engine.store.runs(OUTPUT.page_runs))),
            unfinished=engine.unfinished(),
            source=engine.source(),
            consoles=dict(_consoles(engine, pages.amiss(tables.vms_in(views)))),
        )

    def _read(self, tree: documents.SourceTree) -> Specs:
        if self._specs is None or self._specs.tree != tree:
            specs = validate_specs(tree, self._schemas, here=self._here)
            vms = render_all(specs, here=self._here)
            self._specs, self._counts = specs, Counter(vm.fleet for vm in vms if vm.state != "absent")
        return self._specs

    def _wanted(self, specs: Specs | None, plan: Plan | None) -> dict[tables.FleetKey, tables.Wanted]:
        if specs is None:
            return {}
        names = [fleet.name for fleet in specs.fleets]
        return {(specs.project, name): (self._counts[name], rollout_of(plan, name) if plan else "") for name in names}


def _consoles(engine: Engine, vms: Iterable[observed.ObservedVM]) -> Iterator[tuple[str, bytes]]:
    for vm in list(vms)[: OUTPUT.page_consoles]:
        with suppress(errors.MikromError):  # it went with its host just now
            yield vm.name, engine.hosts.console(vm.host, vm.name, max_bytes=OUTPUT.page_console_bytes).content

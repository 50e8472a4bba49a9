"""This machine as a hypervisor host: what dispatch calls, in this process or inside a Celery worker."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.observed import Console, HostReport, HostView, ObservedState, ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order
from mikrom_reconcile.core.planning.one_off import decide_by_name
from mikrom_reconcile.host.observe import Observer
from mikrom_reconcile.host.orders.execute import Executor
from mikrom_reconcile.host.ports import Driver
from mikrom_reconcile.host.records import Records
from mikrom_reconcile.host.resources.images import ImageCache
from mikrom_reconcile.host.resources.provisioner import GarbageCollector
from mikrom_reconcile.host.supervise import Supervisor, Tell
from mikrom_reconcile.system.approvals import Approvers
from mikrom_reconcile.system.time_limits import Clock
from mikrom_reconcile.times_and_sizes import SUPERVISION


class HostAgent:
    """One host: its driver, its records and its clock. Safe to call from many threads or greenlets at once. `images`
    are those of its state folder unless told otherwise. `note` is what whoever plans for this host should know of it.
    `on_step` is the executor's seam for crashes in tests.
    """

    def __init__(
        self,
        name: str,
        *,
        driver: Driver,
        records: Records,
        clock: Clock,
        images: ImageCache | None = None,
        note: str = "",
        on_step: Callable[[str, str], None] = lambda _vm, _step: None,
    ) -> None:
        self.name, self._driver, self._records, self._clock = name, driver, records, clock
        self._observer = Observer(name, driver=driver, records=records, note=note)
        self._executor = Executor(name, driver=driver, records=records, clock=clock, on_step=on_step)
        self._images = images or ImageCache(records.state_dir)
        self._garbage = GarbageCollector(name, self._images, records)
        self._supervisor: Supervisor | None = None

    def require(self, approvers: Approvers) -> None:
        """Refuse orders that take data away and that lack approvals."""
        self._executor.approvers = approvers

    def supervise(self, *, rescan_s: float = SUPERVISION.rescan_s, on_outcome: Tell | None = None) -> None:
        """Bring back VMMs that die, by their restart policies, until `stop_supervision` or the end of the process."""
        self._supervisor = Supervisor(
            self.name,
            driver=self._driver,
            records=self._records,
            clock=self._clock,
            rescan_s=rescan_s,
            on_rescan=self._garbage.run,
            on_outcome=on_outcome,
        )
        self._supervisor.start()

    def stop_supervision(self) -> None:
        """End the supervision, if there is one; VMs stay as they are. A signal handler may call it."""
        if self._supervisor is not None:
            self._supervisor.stop()

    def stop_all(self) -> None:
        """Stop all VMs of this host, since they may run elsewhere by now; the next run says what is to be up here.
        Raises MikromError while something may still run.
        """
        report = self.observe(ObserveQuery())
        seen = ObservedState(taken_at=report.observed_at, hosts=(HostView(host=self.name, report=report),))
        orders = [
            Order(run_id="given-up", token=token, action=action)
            for project, token in report.highest_tokens.items()
            for action in decide_by_name("stop", ("*",), seen, project=project).plan.actions
        ]
        with ThreadPoolExecutor(SUPERVISION.starts_at_once, thread_name_prefix="stop") as pool:
            left = [outcome for outcome in pool.map(self.execute, orders) if outcome.result.startswith("failed")]
        if left:
            raise MikromError(f"{len(left)} VMs could not be stopped, the first is {left[0].vm}: {left[0].error}")

    def observe(self, query: ObserveQuery) -> HostReport:
        """What is here now, as far as `query` asks. Raises SetupError when the records cannot be listed."""
        failed = self._images.fetch(query.fetch, deadline_s=query.fetch_s)
        report = self._observer.report(query, self._clock.now())
        cached = self._images.report(self._records) if query.images else ()
        return replace(report, images=cached, unfetched=failed)

    def execute(self, order: Order) -> ActionOutcome:
        """Measure, act, verify. What went wrong is in the outcome; only what is no Exception passes through."""
        try:
            return self._executor.execute(order)
        finally:
            if self._supervisor is not None:
                self._supervisor.notify(order.action.vm)
            else:
                self._garbage.run()

    def console(self, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        """The end of the VM's console, or what came `after` a place in it. Raises PermanentError for no VM's name."""
        return self._driver.console(self._records.home_of(vm), max_bytes=max_bytes, after=after)

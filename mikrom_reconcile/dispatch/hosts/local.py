"""The hypervisor of this process as the only host, on threads, which cannot be ended: late orders are given up."""

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from itertools import islice

from mikrom_reconcile.core.model.errors import MikromError, SetupError
from mikrom_reconcile.core.model.observed import Console, HostView, ObserveQuery
from mikrom_reconcile.core.model.plan import ActionOutcome, Order
from mikrom_reconcile.dispatch.transport.order_envelope import given_up
from mikrom_reconcile.host.agent import HostAgent


class LocalHosts:
    """`Hosts` with one host, in this process."""

    def __init__(self, agent: HostAgent) -> None:
        self._agent = agent
        self._elsewhere = f"only {agent.name} can be reached without a broker (MIKROM_BROKER_URL)"

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        del unreachable
        return (self._agent.name,)

    def give_up(self, hosts: Iterable[str]) -> None:
        """Nothing: this process is its own host, and answers."""

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        for host, query in queries.items():
            here = host == self._agent.name
            yield self._view(query, deadline_s) if here else HostView(host=host, error=self._elsewhere)

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:
        """Past the deadline what runs is `failed_temporary`, the rest `skipped`; a signal waits for what goes on."""
        deadline, waiting = time.monotonic() + deadline_s, iter(orders)
        running: dict[Future[ActionOutcome], Order] = {}
        pool = ThreadPoolExecutor(forks, thread_name_prefix="mikrom-action")
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                for order in islice(waiting, forks - len(running)):
                    running[pool.submit(self._agent.execute, order)] = order
                if not running:
                    return
                try:
                    ended, _ = wait(running, left_s, FIRST_COMPLETED)
                except KeyboardInterrupt:
                    yield from (each.result() for each in as_completed(running))
                    raise
                for each in ended:
                    del running[each]
                    yield each.result()
            for order in running.values():
                yield given_up(order, "failed_temporary", "still running past the deadline")
            for order in waiting:
                yield given_up(order, "skipped", "not begun before the deadline")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        if host != self._agent.name:
            raise SetupError(self._elsewhere)
        return self._agent.console(vm, max_bytes=max_bytes, after=after)

    def _view(self, query: ObserveQuery, deadline_s: float) -> HostView:
        pool = ThreadPoolExecutor(1, thread_name_prefix="mikrom-observe")
        try:
            report = pool.submit(self._agent.observe, query).result(timeout=deadline_s)
            return HostView(host=self._agent.name, report=report)
        except TimeoutError:
            return HostView(host=self._agent.name, error=f"no answer within {deadline_s:g} s")
        except MikromError as error:  # it cannot look: unknown, never empty
            return HostView(host=self._agent.name, error=str(error))
        finally:
            pool.shutdown(wait=False)

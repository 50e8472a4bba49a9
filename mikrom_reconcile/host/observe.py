"""What this host reports: each VM's record beside what its driver proves, and one digest per fleet. A fleet whose
digest is the one that control expects sends no rows, so that a report about a host on which nothing changed does not
grow with its VMs. Nothing here changes a VM, a record or a token.
"""

import os
import queue
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import cache, cached_property, partial
from operator import attrgetter
from pathlib import Path

from msgspec.structs import replace

from mikrom_reconcile.core.model import observed as model
from mikrom_reconcile.core.model.desired import Policy, VMSpec
from mikrom_reconcile.core.model.encoding import fleet_digest, row_digest
from mikrom_reconcile.core.model.errors import ActionError
from mikrom_reconcile.core.model.fields import RECORD
from mikrom_reconcile.host.checks import Checks, Trials
from mikrom_reconcile.host.ports import Driver, LinkDrift, VMRecord
from mikrom_reconcile.host.records import Records, UnreadableRecord
from mikrom_reconcile.times_and_sizes import OBSERVING

_NO_VMS = fleet_digest(())

_Future = Future[tuple[model.ObservedVM, float]]


class Observer:
    """Reports about one host. Safe to call from many threads or greenlets at once."""

    def __init__(self, host: str, *, driver: Driver, records: Records, note: str = "") -> None:
        self._host, self._driver, self._records, self._note = host, driver, records, note
        self._checks, self._trials = Checks(records.state_dir), Trials(records.state_dir)

    @cached_property
    def _overhead_mib(self) -> int | None:
        """What a VM takes beyond its own memory; None: nothing of the host's memory at all."""
        probe = VMSpec(image="hello")
        takes_mib = self._driver.memory_mib(probe)
        return takes_mib - probe.machine.mem_size_mib if takes_mib else None

    def report(self, query: model.ObserveQuery, now: datetime) -> model.HostReport:
        """The answer to `query`. VMs whose record cannot be read are always in it. Raises SetupError."""
        until = time.monotonic() + OBSERVING.report_s
        found = tuple(self._records.list())
        records = [record for record in found if isinstance(record, VMRecord)]
        rows = [unreadable_row(item, self._host, now) for item in found if isinstance(item, UnreadableRecord)]
        report = model.HostReport(
            host=self._host,
            observed_at=now,
            capacity=capacity(),
            promised=promised(records, self._overhead_mib or 0),
            overhead_mib=self._overhead_mib,
            used_mib=used_mib(),
            note=self._note,
            strays=self._driver.strays({self._records.home_of(item.vm) for item in found}) if query.strays else (),
            foreign=self._driver.foreign() if query.strays else (),
            described=self._driver.described(query.socket) if query.socket else None,
        )
        if (project := query.project) is None:
            rows += (row for row, _ in self._observe_all(records, until))
            tokens = self._records.highest_tokens()
            return replace(report, highest_tokens=tokens, vms=tuple(sorted(rows, key=attrgetter("name"))))
        mine = [record for record in records if record.project == project and not record.unmanaged]
        observed = list(self._observe_all(mine, until))
        own = [row for row, _ in observed]
        maturing, digests = _maturing(observed, query.min_healthy_s), fleet_digests(own)
        unproven, progress = self._trials.judge(own, query.trials, maturing, now)
        fleets = differing(digests, query.known)
        rows += [row for row in own if row.fleet in fleets]
        if fleets or query.others:
            others = [record for record in records if record.project != project or record.unmanaged]
            rows += (row for row, _ in self._observe_all(others, until))
        let_go = {ip: -1.0 for record in records if record.unmanaged for ip in record.addresses.values()}
        return replace(
            report,
            highest_tokens={project: self._records.highest_token(project)},
            digests=digests,
            vms=tuple(sorted(rows, key=attrgetter("name"))),
            phases=_phases_of(own),
            released=self._records.released(project) | let_go,
            maturing=maturing,
            attempts=self._records.attempts(),
            unproven=unproven,
            progress=progress,
            canaries=tuple(row.name for row in own if row.trial and row.trial.canary),
            halts={row.name: row.halt for row in own if row.halt},
            before={it.vm: it.before for it in records if query.before and it.project == query.project and it.before},
        )

    def _observe_all(self, records: Sequence[VMRecord], until: float) -> Iterator[tuple[model.ObservedVM, float]]:
        """Each VM, and how long its VMM has lived, as they answer; those that have not by `until` as unreadable."""
        if not records:
            return
        begin_by = time.monotonic() + OBSERVING.begin_checks_s
        observe = partial(self._observe, links=self._driver.links(), give_up_at=begin_by)
        until, waiting = max(until, time.monotonic() + OBSERVING.others_s), deque(records)
        under_way: dict[_Future, tuple[VMRecord, float]] = {}
        ended: queue.SimpleQueue[_Future] = queue.SimpleQueue()
        pool = ThreadPoolExecutor(OBSERVING.max_threads, thread_name_prefix="observe")
        try:
            while (waiting or under_way) and (now := time.monotonic()) < until:
                silent = sum(now - since > OBSERVING.silent_after_s for _, since in under_way.values())
                while waiting and len(under_way) < min(silent + OBSERVING.threads, OBSERVING.max_threads):
                    future = pool.submit(observe, record := waiting.popleft())
                    under_way[future] = record, now
                    future.add_done_callback(ended.put)
                with suppress(queue.Empty):
                    future = ended.get(timeout=OBSERVING.silent_after_s)
                    del under_way[future]
                    yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for record in (*waiting, *(record for record, _ in under_way.values())):
            why = f"it did not answer within {OBSERVING.report_s:g} s, when its host had to report"
            yield self._unseen(record, why), 0.0

    def _observe(self, record: VMRecord, *, links: LinkDrift, give_up_at: float) -> tuple[model.ObservedVM, float]:
        """The VM as it is now, or `unreadable` with the reason: one that cannot be observed hides no other."""
        try:
            facts = self._driver.observe(record)
            row = row_of(record, facts, self._host, links)
            if record.spec.checks and row.phase == "running":
                row = self._with_health(row, record, facts, give_up_at)
        except ActionError as error:
            return self._unseen(record, str(error)), 0.0
        return row, facts.age_s

    def _unseen(self, record: VMRecord, why: str) -> model.ObservedVM:
        return replace(row_of(record, model.VMMFacts(status="none"), self._host), phase="unreadable", last_error=why)

    def _with_health(
        self, row: model.ObservedVM, record: VMRecord, facts: model.VMMFacts, give_up_at: float
    ) -> model.ObservedVM:
        def said(max_bytes: int) -> bytes:
            return self._driver.console(record.home, max_bytes=max_bytes, after=facts.console_at).content

        phase, why = self._checks.health(record, facts, said, give_up_at=give_up_at)
        return replace(row, phase=phase, health=why)


def row_of(record: VMRecord, facts: model.VMMFacts, host: str, links: LinkDrift | None = None) -> model.ObservedVM:
    """The row of a VM: its record, what was proven of its VMM, and where its links differ."""
    is_linked = facts.status in model.HEALTHY and record.spec.network_interfaces
    link_drift = links(record) if links is not None and is_linked else ()
    damage = [model.Drift(path=RECORD, recorded="as it was written", actual=record.damage)] if record.damage else ()
    return model.ObservedVM(
        name=record.vm,
        host=host,
        phase=model.phase_of(facts, record.state, failed=record.last_error is not None, crash_loop=record.crash_loop),
        drift=(*damage, *facts.drift, *link_drift),
        pid=facts.pid,
        **{field: getattr(record, field) for field in model.Applied.__struct_fields__},
    )


def unreadable_row(found: UnreadableRecord, host: str, now: datetime) -> model.ObservedVM:
    """A VM whose record cannot be read: its name, and the reason in `last_error`. The rest of the row means nothing."""
    return model.ObservedVM(
        name=found.vm,
        uid="",
        project="",
        fleet="",
        host=host,
        phase="unreadable",
        state="stopped",
        spec=VMSpec(image=""),
        policy=Policy(),
        spec_digest="",
        generation=0,
        token=0,
        created_at=now,
        last_error=found.reason,
    )


def fleet_digests(rows: Sequence[model.ObservedVM]) -> dict[str, str]:
    """The digest of each fleet among the rows of one project."""
    fleets: dict[str, list[tuple[str, str, str, tuple[model.Drift, ...]]]] = defaultdict(list)
    for row in rows:
        fleets[row.fleet].append((row.name, row_digest(row.spec_digest, row.addresses), row.phase, row.drift))
    return {fleet: fleet_digest(members) for fleet, members in fleets.items()}


def _phases_of(rows: Sequence[model.ObservedVM]) -> dict[str, dict[model.Phase, int]]:
    phases: dict[str, dict[model.Phase, int]] = defaultdict(Counter)
    for row in rows:
        phases[row.fleet][row.phase] += 1
    return phases


def _maturing(observed: Iterable[tuple[model.ObservedVM, float]], min_healthy_s: dict[str, float]) -> dict[str, float]:
    left_s = {
        row.name: min_healthy_s.get(row.fleet, 0.0) - age_s for row, age_s in observed if row.phase in model.HEALTHY
    }
    return {name: left for name, left in left_s.items() if left > 0}


def promised(records: Iterable[VMRecord], overhead_mib: int) -> model.Capacity:
    """What VMs that are ordered to be up may take; one that its host has given up takes nothing."""
    machines = [record.spec.machine for record in records if record.state in model.WANTS_VMM and not record.crash_loop]
    return model.Capacity(
        vcpu_count=sum(machine.vcpu_count for machine in machines),
        mem_size_mib=sum(machine.mem_size_mib + overhead_mib for machine in machines),
    )


@cache
def capacity() -> model.Capacity:
    """What this machine has in all."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return model.Capacity(vcpu_count=os.cpu_count() or 1, mem_size_mib=memory_bytes >> 20)


def used_mib() -> int:
    """How much of this machine's memory is taken now, and could not be had by reclaiming caches."""
    amounts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total_kib, available_kib = (int(amounts[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    return (total_kib - available_kib) >> 10


def differing(digests: dict[str, str], known: dict[str, str]) -> set[str]:
    """Fleets that are not as control expects; one that is missing on either side counts as a fleet without VMs."""
    fleets = digests.keys() | known.keys()
    return {fleet for fleet in fleets if digests.get(fleet, _NO_VMS) != known.get(fleet, _NO_VMS)}

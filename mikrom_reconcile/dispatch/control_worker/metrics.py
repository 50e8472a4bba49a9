"""What a control worker counts for MIKROM_METRICS, and gauges of the fleet. No name changes its meaning."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, Literal

import msgspec
from msgspec.structs import replace
from redis import Redis, RedisError

from mikrom_reconcile.core.model.encoding import UNREADABLE, decoded
from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.plan import BEAT, RunReport, RunRequest
from mikrom_reconcile.core.planning.drift import drifted
from mikrom_reconcile.dispatch.control_worker.page import Page
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.dispatch.transport.shared_state import counts, known, living, source_state
from mikrom_reconcile.output.plan import FORMER_RULES
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, LATE, REFUSED, UNREACHABLE, RunResult, result_of
from mikrom_reconcile.settings import Settings

_log = logging.getLogger(__name__)

Tick = Literal["run", "skipped", "late", "failed"]

_RUN_BUCKETS_S = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)
_ACTION_BUCKETS_S = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "redis_up": ("1 while the broker answers this control worker.", ()),
    "workers": ("Processes that live, by kind.", ("kind",)),
    "dark_hosts": ("Hosts seen within a day whose worker does not live.", ()),
    "queue_messages": ("Messages that wait.", ("queue",)),
    "queue_age_seconds": ("Age of the message that waits longest.", ("queue",)),
    "vms": (
        "VMs, as the last run of their project saw them; `unknown` on hosts whose worker does not live.",
        ("project", "fleet", "host", "phase"),
    ),
    "host_memory_promised_bytes": ("What VMs of a host may take of its memory.", ("host",)),
    "host_memory_bytes": ("The memory of a host.", ("host",)),
    "last_run_timestamp_seconds": ("When the last whole run of a project ended.", ("project",)),
    "last_converged_timestamp_seconds": ("When a project was last seen to be as specified.", ("project",)),
    "convergence_lag_seconds": ("For how long a project has not been as specified; 0 while it is.", ("project",)),
    "next_run_timestamp_seconds": ("When the next scheduled run is due.", ()),
    "source_broken": ("1 while scheduled runs use the last good specs.", ()),
    "source_broken_revision_info": ("The revision that scheduled runs cannot use, and whose it is.", ("revision",)),
    "source_age_seconds": ("Since the specs of scheduled runs were last read and found good.", ()),
    "source_revision_info": ("The revision that scheduled runs use.", ("revision",)),
}
"""What is true of the fleet: name without `mikrom_`, meaning, labels."""

_Sample = tuple[str, tuple[str, ...], float]


class RunTimes(msgspec.Struct, frozen=True, kw_only=True):
    """When whole runs of a project ended, in seconds since the epoch; shared by control workers through Redis."""

    first_at: float
    ended_at: float
    converged_at: float | None = None
    converged_to: str = ""  # the revision; none if people have removed VMs since


class Metrics:
    """Counts in this process, and looks into Redis for what is true of the whole fleet when it is scraped."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram  # noqa: PLC0415 - only who asks pays

        self.registry = registry = CollectorRegistry()
        self._redis, self._keys = redis, keys
        self._run_s = Histogram(
            "mikrom_run_duration_seconds", "Runs, by who asked and how they ended.", ["origin", "result"],
            buckets=_RUN_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._actions = Counter("mikrom_actions", "Actions, by verb and result.", ["verb", "result"], registry=registry)
        self._action_s = Histogram(
            "mikrom_action_duration_seconds", "From the order to its outcome on the host.", ["verb"],
            buckets=_ACTION_BUCKETS_S, registry=registry,
        )  # fmt: skip
        told = "VMs that scheduled runs found otherwise than they were left, by the rule that saw it."
        self._drift = Counter("mikrom_drift", told, ["rule", "rule_id", "kind"], registry=registry)
        self._ticks = Counter("mikrom_ticks", "Beat's ticks, by what became of them.", ["result"], registry=registry)
        registry.register(self)

    def ran(self, request: RunRequest, report: RunReport | None, duration_s: float) -> None:
        """Count a run, its actions, and what it found, and keep when it ended. No report: an error ended it."""
        origin = request.origin.partition(" ")[0]
        if report is None:
            self._run_s.labels(origin, "error").observe(duration_s)
            return
        result = result_of(report)
        self._run_s.labels(origin, _result(result)).observe(duration_s)
        for outcome in report.outcomes:
            self._actions.labels(outcome.verb, outcome.result).inc()
            self._action_s.labels(outcome.verb).observe((outcome.finished_at - outcome.started_at).total_seconds())
        before: RunTimes | None = None
        with suppress(RedisError):  # the run itself was told already
            before = decoded(self._redis.hget(self._keys.run_times, report.plan.project), RunTimes)
        if request.origin == BEAT:
            kinds = {(change.name, change.host): change.kind for change in report.plan.changes}
            was_there = {vm for vm, _ in kinds} if before and before.converged_to == report.plan.revision else ()
            for vm in drifted(report.plan.changes, was_there):
                self._drift.labels(FORMER_RULES.get(vm.rule_id, vm.rule_id), vm.rule_id, kinds[vm.vm, vm.host]).inc()
        if times := _times_after(before, request, report, converged=result.converged):
            with suppress(RedisError):
                self._redis.hset(self._keys.run_times, report.plan.project, msgspec.json.encode(times))

    def ticked(self, result: Tick) -> None:
        """Count a tick of Beat's by what became of it."""
        self._ticks.labels(result).inc()

    def collect(self) -> Iterator[Any]:
        """What is true of the whole fleet, whichever control worker is asked: one look into Redis."""
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - as above

        gauges = {
            name: GaugeMetricFamily(f"mikrom_{name}", about, labels=labels) for name, (about, labels) in _GAUGES.items()
        }
        try:
            samples: list[_Sample] = [("redis_up", (), 1), *self._samples(time.time())]
        except RedisError as error:
            _log.warning("metrics: %s", error)
            gauges, samples = {"redis_up": gauges["redis_up"]}, [("redis_up", (), 0)]
        for name, labels, value in samples:
            gauges[name].add_metric(labels, value)
        yield from gauges.values()

    def _samples(self, now: float) -> Iterator[_Sample]:
        hosts = known(self._redis, self._keys)
        alive = {kind: {*living(self._redis, self._keys, kind)} for kind in ("host", "control", "beat")}
        for kind, names in alive.items():
            yield "workers", (kind,), len(names)
        yield "dark_hosts", (), len({*hosts} - alive["host"])
        for queue in (self._keys.queue, *map(self._keys.host_queue, hosts)):
            length, sent_at = self._waiting(queue)
            yield "queue_messages", (queue,), length
            yield "queue_age_seconds", (queue,), max(0.0, now - sent_at) if sent_at else 0
        yield from self._vms(hosts, alive["host"])
        yield from self._runs(now)
        yield from self._source(now)

    def _vms(self, hosts: Iterable[str], alive: Collection[str]) -> Iterator[_Sample]:
        """What the last runs saw; of a host whose worker does not live nobody knows the phases."""
        vms: Counter[tuple[str, ...]] = Counter()
        for (host, project), found in counts(self._redis, self._keys, hosts).items():
            for fleet, phases in found.fleets.items():
                for phase, count in phases.items():
                    vms[project, fleet, host, phase if host in alive else "unknown"] += count
            if not project:
                yield "host_memory_promised_bytes", (host,), found.promised_mib << 20
                yield "host_memory_bytes", (host,), found.mem_size_mib << 20
        for labels, count in vms.items():
            yield "vms", labels, count

    def _waiting(self, queue: str) -> tuple[int, float | None]:
        pipe = self._redis.pipeline(transaction=False)
        for name in self._keys.lists(queue):
            pipe.llen(name)
            pipe.lindex(name, -1)
        found = pipe.execute()
        sent = [at for message in found[1::2] if message and (at := _sent_at(message))]
        return sum(found[::2]), min(sent, default=None)

    def _runs(self, now: float) -> Iterator[_Sample]:
        found: Any = self._redis.hgetall(self._keys.run_times)
        for name, packed in found.items():
            if (times := decoded(packed, RunTimes)) is None:
                continue
            project = (name.decode(),)
            converged_at, is_converged = times.converged_at, times.converged_at == times.ended_at
            yield "last_run_timestamp_seconds", project, times.ended_at
            if converged_at:
                yield "last_converged_timestamp_seconds", project, converged_at
            yield "convergence_lag_seconds", project, 0 if is_converged else now - (converged_at or times.first_at)

    def _source(self, now: float) -> Iterator[_Sample]:
        state = source_state(self._redis, self._keys)
        if state is None:
            return
        if state.next_at is not None:
            yield "next_run_timestamp_seconds", (), state.next_at.timestamp()
        yield "source_broken", (), bool(state.problem)
        if state.broken:
            yield "source_broken_revision_info", (state.broken,), 1
        if state.good_at is not None:
            yield "source_age_seconds", (), max(0.0, now - state.good_at.timestamp())
        yield "source_revision_info", (state.revision,), 1


def serve(settings: Settings, redis: Redis, keys: Keys, page: Callable[[], str]) -> Metrics:
    """Answer scrapes and readers of the page at MIKROM_METRICS. Raises SetupError when that cannot be had."""
    from prometheus_client import start_http_server  # noqa: PLC0415 - only who asks pays

    metrics, address = Metrics(redis, keys), str(settings.metrics)
    host, _, port = address.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), registry=metrics.registry)
    except OSError as error:
        raise SetupError(f"MIKROM_METRICS={address}: {error.strerror or error}") from error
    if others := server.get_app():
        server.set_app(Page(page, settings.page_auth, host, others))
    return metrics


def _result(result: RunResult) -> str:
    bits = ((CHANGES_OR_FAILED, "failed"), (UNREACHABLE, "unreachable"), (REFUSED, "refused"), (LATE, "late"))
    words = (word for bit, word in bits if result.exit_code & bit)
    return next(words, "converged" if result.converged else "waiting")


def _times_after(
    before: RunTimes | None, request: RunRequest, report: RunReport, *, converged: bool
) -> RunTimes | None:
    if request.limit or request.tags or request.skip_tags or request.verb or request.destroy:
        removed = request.verb == "delete" or request.destroy  # then people removed what is missing from now on
        return replace(before, converged_to="") if before and removed else None
    at = report.finished_at.timestamp()
    times = replace(before, ended_at=at) if before else RunTimes(first_at=at, ended_at=at)
    return replace(times, converged_at=at, converged_to=report.plan.revision) if converged else times


def _sent_at(message: bytes) -> float | None:
    try:
        return float(msgspec.json.decode(message)["headers"]["sent_at"])
    except (*UNREADABLE, KeyError, TypeError):  # somebody else's
        return None

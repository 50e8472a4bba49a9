"""What a control worker counts, and that it counts nothing unless it is asked to: MIKROM_METRICS.

Names of metrics are what dashboards and alarms rely on: none changes its meaning. It must not slow a run down, and no
label may hold what users choose without bound, such as the names of VMs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec.structs import replace
from redis import RedisError

from mikrom_reconcile.core.model.errors import SetupError
from mikrom_reconcile.core.model.plan import Plan, VMChange
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.run import BEAT, RunReport, RunRequest
from mikrom_reconcile.dispatch.control_worker.source_sync import source_state
from mikrom_reconcile.dispatch.transport.census import counted
from mikrom_reconcile.dispatch.transport.heartbeats import known, living
from mikrom_reconcile.output.documents import FORMER_RULES
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, LATE, REFUSED, UNREACHABLE, Verdict, verdict_of

if TYPE_CHECKING:
    from prometheus_client.metrics_core import GaugeMetricFamily

    from mikrom_reconcile.dispatch.app import FleetApp

_log = logging.getLogger(__name__)

Tick = Literal["run", "skipped", "late", "failed"]

_RUN_BUCKETS_S = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)
_ACTION_BUCKETS_S = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class RunTimes(msgspec.Struct, frozen=True, kw_only=True):
    """When whole runs of a project ended, in seconds since the epoch; shared by control workers through Redis.

    `converged_to` is the revision at `converged_at`, "" if people have removed VMs since.
    """

    first_at: float
    ended_at: float
    converged_at: float | None = None
    converged_to: str = ""


class NoMetrics:
    """Counts nothing."""

    def ran(self, request: RunRequest, report: RunReport | None, duration_s: float) -> None:
        """A run has ended, without a report if an error ended it."""

    def ticked(self, result: Tick) -> None:
        """Beat's tick has become something."""


class Metrics(NoMetrics):
    """Counts in this process, and looks into Redis for what is true of the whole fleet when it is scraped."""

    def __init__(self, app: FleetApp) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram  # noqa: PLC0415 - only who asks pays

        self.registry = registry = CollectorRegistry()
        self._app = app
        self._runs = Histogram(
            "mikrom_run_duration_seconds", "Runs, by who asked and how they ended.", ["origin", "result"],
            buckets=_RUN_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._actions = Counter("mikrom_actions", "Actions, by verb and result.", ["verb", "result"], registry=registry)
        self._action_s = Histogram(
            "mikrom_action_duration_seconds", "From the order to its outcome on the host.", ["verb"],
            buckets=_ACTION_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._drift = Counter(
            "mikrom_drift", "VMs that scheduled runs found otherwise than they were left, by the rule that saw it.",
            ["rule", "rule_id", "kind"], registry=registry,
        )  # fmt: skip
        self._ticks = Counter("mikrom_ticks", "Beat's ticks, by what became of them.", ["result"], registry=registry)
        registry.register(_Fleet(app))

    def ran(self, request: RunRequest, report: RunReport | None, duration_s: float) -> None:
        """Count a run, its actions, and what it found; and tell all control workers when it ended."""
        origin = request.origin.partition(" ")[0]
        if report is None:
            self._runs.labels(origin, "error").observe(duration_s)
            return
        verdict = verdict_of(report)
        self._runs.labels(origin, _result(verdict)).observe(duration_s)
        for outcome in report.outcomes:
            self._actions.labels(outcome.verb, outcome.result).inc()
            self._action_s.labels(outcome.verb).observe((outcome.finished_at - outcome.started_at).total_seconds())
        if request.origin == BEAT:
            before = self._run_times(report.plan.project)
            same = before is not None and before.converged_to == report.plan.revision
            for change in report.plan.changes:
                if _is_drift(change, same_revision=same):
                    self._drift.labels(FORMER_RULES.get(change.rule, change.rule), change.rule, change.kind).inc()
        if not (request.limit or request.tags or request.skip_tags or request.verb or request.destroy):
            self._remember(report.plan, report.finished_at, converged=verdict.converged)
        elif (request.verb == "delete" or request.destroy) and (times := self._run_times(report.plan.project)):
            self._keep(report.plan.project, replace(times, converged_to=""))  # what is missing now, people removed

    def ticked(self, result: Tick) -> None:
        """Count a tick."""
        self._ticks.labels(result).inc()

    def _run_times(self, project: str) -> RunTimes | None:
        with suppress(RedisError):  # the run itself was told already
            return _times(self._app.redis.hget(self._app.keys.run_times, project))
        return None

    def _remember(self, plan: Plan, ended_at: datetime, *, converged: bool) -> None:
        at = ended_at.timestamp()
        times = replace(self._run_times(plan.project) or RunTimes(first_at=at, ended_at=at), ended_at=at)
        if converged:
            times = replace(times, converged_at=at, converged_to=plan.revision)
        self._keep(plan.project, times)

    def _keep(self, project: str, times: RunTimes) -> None:
        with suppress(RedisError):
            self._app.redis.hset(self._app.keys.run_times, project, msgspec.json.encode(times))


def serve(app: FleetApp) -> NoMetrics:
    """Answer scrapes where MIKROM_METRICS says. Raises SetupError when that cannot be had."""
    if app.settings.metrics is None:
        return NoMetrics()
    from prometheus_client import start_http_server  # noqa: PLC0415 - only who asks pays

    metrics = Metrics(app)
    address, _, port = app.settings.metrics.rpartition(":")
    try:
        start_http_server(int(port), address.strip("[]"), registry=metrics.registry)
    except OSError as error:
        raise SetupError(f"MIKROM_METRICS={app.settings.metrics}: {error.strerror or error}") from error
    return metrics


class _Fleet:
    """What is true of the fleet, whichever control worker is asked."""

    def __init__(self, app: FleetApp) -> None:
        self._app = app

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One look into Redis."""
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - as above

        up = GaugeMetricFamily("mikrom_redis_up", "1 while the broker answers this control worker.")
        gauges: list[GaugeMetricFamily] = []
        try:
            for name, about, labels, values in self._values():
                gauge = GaugeMetricFamily(name, about, labels=labels)
                for label, value in values:
                    gauge.add_metric(label, value)
                gauges.append(gauge)
            up.add_metric([], 1)
        except RedisError as error:
            _log.warning("metrics: %s", error)
            up.add_metric([], 0)
            gauges.clear()
        yield from (up, *gauges)

    def _values(self) -> Iterator[tuple[str, str, list[str], list[tuple[list[str], float]]]]:
        """Name, meaning, labels, and their values. Raises RedisError."""
        redis, keys, now = self._app.redis, self._app.keys, time.time()
        hosts = known(redis, keys)
        alive = {kind: living(redis, keys, kind) for kind in ("host", "control", "beat")}
        count = [([kind], float(len(names))) for kind, names in alive.items()]
        yield "mikrom_workers", "Processes that live, by kind.", ["kind"], count
        dark = float(len({*hosts} - {*alive["host"]}))
        yield "mikrom_dark_hosts", "Hosts seen within a day whose worker does not live.", [], [([], dark)]
        waiting = {name: self._waiting(name) for name in (keys.queue, *map(keys.host_queue, hosts))}
        messages = [([name], float(length)) for name, (length, _) in waiting.items()]
        yield "mikrom_queue_messages", "Messages that wait.", ["queue"], messages
        ages = [([name], max(0.0, now - sent_at) if sent_at else 0.0) for name, (_, sent_at) in waiting.items()]
        yield "mikrom_queue_age_seconds", "Age of the message that waits longest.", ["queue"], ages
        yield from self._vms(hosts, {*alive["host"]})
        yield from self._runs(now)
        yield from self._source(now)

    def _vms(
        self, hosts: Iterable[str], alive: Collection[str]
    ) -> Iterator[tuple[str, str, list[str], list[tuple[list[str], float]]]]:
        """What the last runs saw; of a host whose worker does not live nobody knows the phases."""
        found = counted(self._app.redis, self._app.keys, hosts)
        vms: Counter[tuple[str, ...]] = Counter()
        for (host, project), census in found.items():
            for fleet, phases in census.fleets.items():
                for phase, count in phases.items():
                    vms[project, fleet, host, phase if host in alive else "unknown"] += count
        about = "VMs, as the last run of their project saw them; `unknown` on hosts whose worker does not live."
        yield "mikrom_vms", about, ["project", "fleet", "host", "phase"], [([*key], n) for key, n in vms.items()]
        own = [(host, census) for (host, project), census in found.items() if not project]
        promised = [([host], float(census.promised_mib << 20)) for host, census in own]
        yield "mikrom_host_memory_promised_bytes", "What VMs of a host may take of its memory.", ["host"], promised
        memory = [([host], float(census.mem_size_mib << 20)) for host, census in own]
        yield "mikrom_host_memory_bytes", "The memory of a host.", ["host"], memory

    def _waiting(self, queue: str) -> tuple[int, float | None]:
        """How many messages wait, and when the oldest of them was sent."""
        pipe = self._app.redis.pipeline(transaction=False)
        for name in self._app.keys.lists(queue):
            pipe.llen(name)
            pipe.lindex(name, -1)
        found = pipe.execute()
        sent = [at for message in found[1::2] if message and (at := _sent_at(message))]
        return sum(found[::2]), min(sent, default=None)

    def _runs(self, now: float) -> Iterator[tuple[str, str, list[str], list[tuple[list[str], float]]]]:
        found: Any = self._app.redis.hgetall(self._app.keys.run_times)
        runs = {name.decode(): times for name, packed in found.items() if (times := _times(packed))}
        ended = [([name], times.ended_at) for name, times in runs.items()]
        yield "mikrom_last_run_timestamp_seconds", "When the last whole run of a project ended.", ["project"], ended
        good = [([name], times.converged_at) for name, times in runs.items() if times.converged_at]
        about = "When a project was last seen to be as specified."
        yield "mikrom_last_converged_timestamp_seconds", about, ["project"], good
        lags = [
            ([name], 0.0 if times.converged_at == times.ended_at else now - (times.converged_at or times.first_at))
            for name, times in runs.items()
        ]
        about = "For how long a project has not been as specified; 0 while it is."
        yield "mikrom_convergence_lag_seconds", about, ["project"], lags

    def _source(self, now: float) -> Iterator[tuple[str, str, list[str], list[tuple[list[str], float]]]]:
        state = source_state(self._app.redis, self._app.keys)
        if state is None:
            return
        if state.next_at is not None:
            about = "When the next scheduled run is due."
            yield "mikrom_next_run_timestamp_seconds", about, [], [([], state.next_at.timestamp())]
        broken = float(bool(state.problem))
        yield "mikrom_source_broken", "1 while scheduled runs use the last good specs.", [], [([], broken)]
        about = "The revision that scheduled runs cannot use, and whose it is."
        blamed = [([state.broken], 1.0)] if state.broken else []
        yield "mikrom_source_broken_revision_info", about, ["revision"], blamed
        if state.good_at is not None:
            about = "Since the specs of scheduled runs were last read and found good."
            yield "mikrom_source_age_seconds", about, [], [([], max(0.0, now - state.good_at.timestamp()))]
        about = "The revision that scheduled runs use."
        yield "mikrom_source_revision_info", about, ["revision"], [([state.revision], 1.0)]


def _result(verdict: Verdict) -> str:
    bits = ((CHANGES_OR_FAILED, "failed"), (UNREACHABLE, "unreachable"), (REFUSED, "refused"), (LATE, "late"))
    words = (word for bit, word in bits if verdict.exit_code & bit)
    return next(words, "converged" if verdict.converged else "waiting")


_ASKED_FOR = frozenset({"misplaced", "cannot-move", "host-removed", "interrupted-delete"})
"""Rules that see what an inventory or an order wants, though the VM is as its spec says."""


def _is_drift(change: VMChange, *, same_revision: bool) -> bool:
    """Whether nobody asked for what differs. A VM that is missing was there if the project was as it is wanted now."""
    if change.desired is None or change.observed is None:
        return change.rule == "duplicate" or (change.rule == "missing" and same_revision)
    return change.observed.spec_digest == change.desired.spec_digest and change.rule not in _ASKED_FOR


def _times(packed: Any) -> RunTimes | None:
    try:
        return msgspec.json.decode(packed, type=ready(RunTimes)) if packed else None
    except msgspec.MsgspecError:  # another release wrote it
        return None


class _Headers(msgspec.Struct):
    sent_at: float | None = None


class _Message(msgspec.Struct):
    headers: _Headers = msgspec.field(default_factory=_Headers)


def _sent_at(message: bytes) -> float | None:
    try:
        return msgspec.json.decode(message, type=ready(_Message)).headers.sent_at
    except msgspec.MsgspecError:  # somebody else's
        return None

"""What a control worker counts for MIKROM_METRICS, and gauges of the fleet, whose names never change their meaning; and
beside them the page of the status: who may read it, and how often it is made anew.
"""

import gzip
import hmac
import logging
import re
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from redis import Redis, RedisError

from mikrom_reconcile.core.model.encoding import UNREADABLE, decoded
from mikrom_reconcile.core.model.errors import MikromError, SetupError
from mikrom_reconcile.core.model.plan import BEAT, RunReport, RunRequest
from mikrom_reconcile.core.planning.drift import drifted
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.dispatch.transport.shared_state import counts, known, living, source_state
from mikrom_reconcile.output.pages import policy
from mikrom_reconcile.output.plan import FORMER_RULES
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, LATE, REFUSED, UNREACHABLE, RunResult, result_of
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import OUTPUT

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HTML = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TEXT = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
_EVERY = f"{OUTPUT.page_refresh_s:.0f}"
NOTE = f'<p class="dim">Read anew every {_EVERY} s: <a href="/">yes</a>, <a href="/?still">no</a></p>'
"""The last words of the page's head: whoever reads it may want it to stay."""

Answer = tuple[str, dict[str, str], str]  # status, headers, text
Application = Callable[[dict[str, Any], Any], Iterable[bytes]]  # as WSGI has it


class Page:
    """Answers `/` with the page, and leaves all else to another application. No run waits for anything here."""

    def __init__(self, make: Callable[[], str], auth: str | None, address: str, others: Application) -> None:
        """`make` is asked when the last page is too old; `auth` has users as FLOWER_BASIC_AUTH has."""
        self._make, self._others = make, others
        users = auth.split(",") if auth else []
        self._known = [f"Basic {b64encode(user.encode()).decode()}".encode() for user in users]
        self._is_private = address in _LOOPBACK
        self._lock, self._again_at, self._html = threading.Lock(), 0.0, ""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        if environ["PATH_INFO"] != "/":
            return self._others(environ, start_response)
        status, headers, text = self._refusal(environ) or self._page()
        body, more = text.encode(), {}
        if status[0] != "4" and environ.get("QUERY_STRING") != "still":
            more["Refresh"] = _EVERY  # no element: a page that somebody saves stays as it is
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body, more["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        start_response(status, [*(headers | more).items(), ("Content-Length", str(len(body)))])
        return [body]

    def _refusal(self, environ: dict[str, Any]) -> Answer | None:
        if self._known:
            given = environ.get("HTTP_AUTHORIZATION", "").encode()
            if sum(hmac.compare_digest(given, known) for known in self._known):  # all, so that it takes the same time
                return None
            ask = {"WWW-Authenticate": 'Basic realm="mikrom", charset="UTF-8"'}
            return "401 Unauthorized", _TEXT | ask, "MIKROM_PAGE_AUTH says who may read it.\n"
        name = re.sub(r":\d+$", "", environ.get("HTTP_HOST", ""))
        if self._is_private and name in _LOOPBACK:  # any other name that leads here is a trick of some site
            return None
        return "403 Forbidden", _TEXT, "Set MIKROM_PAGE_AUTH=user:password, or read it as 127.0.0.1 there.\n"

    def _page(self) -> Answer:
        """One is made at most every few seconds, and takes at most a tenth of the time."""
        with self._lock:
            began = time.monotonic()
            if began >= self._again_at:
                try:
                    self._html = self._make()
                except (MikromError, RedisError) as error:
                    return "503 Service Unavailable", _TEXT, f"{sanitize(str(error))}\n"
                took_s = time.monotonic() - began
                self._again_at = began + max(OUTPUT.page_interval_s, 10 * took_s)
            return "200 OK", _HTML, self._html


_log = logging.getLogger(__name__)

_RUN_BUCKETS_S = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)
_ACTION_BUCKETS_S = (0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


_GAUGE = re.compile(r"^(\w+): (.+?)(?: \[(.+)\])?$", re.MULTILINE)  # a line of gauges.yml

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

    def collect(self) -> Iterator[Any]:
        """What is true of the whole fleet, whichever control worker is asked: one look into Redis."""
        from prometheus_client.metrics_core import GaugeMetricFamily  # noqa: PLC0415 - as above

        table = _GAUGE.findall(Path(__file__).with_name("gauges.yml").read_text("utf-8"))
        gauges = {
            name: GaugeMetricFamily(f"mikrom_{name}", about, labels=labels.split(", ") if labels else ())
            for name, about, labels in table
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


def _times_after(last: RunTimes | None, request: RunRequest, report: RunReport, *, converged: bool) -> RunTimes | None:
    if request.limit or request.tags or request.skip_tags or request.verb or request.destroy:
        removed = request.verb == "delete" or request.destroy  # then people removed what is missing from now on
        return replace(last, converged_to="") if last and removed else None
    at = report.finished_at.timestamp()
    times = replace(last, ended_at=at) if last else RunTimes(first_at=at, ended_at=at)
    return replace(times, converged_at=at, converged_to=report.plan.revision) if converged else times


def _sent_at(message: bytes) -> float | None:
    try:
        return float(msgspec.json.decode(message)["headers"]["sent_at"])
    except (*UNREADABLE, KeyError, TypeError):  # somebody else's
        return None

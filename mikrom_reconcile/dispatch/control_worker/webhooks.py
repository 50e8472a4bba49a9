"""What scheduled runs tell people outside: once when it begins or changes, and once when all is well again."""

import hmac
import logging
import re
import time
from contextlib import suppress
from hashlib import blake2b
from threading import Thread
from typing import Any

import msgspec
from redis import Redis, RedisError

from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.plan import RunReport
from mikrom_reconcile.core.planning.drift import drifted
from mikrom_reconcile.dispatch.transport.broker import Keys
from mikrom_reconcile.output.drift import DriftReport
from mikrom_reconcile.output.formats import FORMAT_VERSION
from mikrom_reconcile.output.run_result import record_of
from mikrom_reconcile.output.text import sanitize
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.system.download import FetchError
from mikrom_reconcile.system.https_source import opened
from mikrom_reconcile.times_and_sizes import WEBHOOKS

_log = logging.getLogger(__name__)

_STATES = {"ok": "success", "healed": "success", "waiting": "pending", "failing": "failure"}  # GitHub's words


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What a run found and left. `healed` is drift that it has put right; `commit` is what it speaks of, or ""."""

    project: str
    state: str
    summary: str
    lines: tuple[str, ...]
    revision: str
    commit: str


class Webhooks:
    """The addresses of MIKROM_WEBHOOKS; what each was told last is kept in Redis. Raises UsageError without a key."""

    def __init__(self, settings: Settings, redis: Redis, keys: Keys) -> None:
        self._hooks, self._redis, self._keys = settings.webhooks, redis, keys
        self._secret, self._token = settings.webhook_secret or "", settings.webhook_token or ""
        for kind, _ in self._hooks:
            if (kind == "json" and not self._secret) or (kind in {"github", "gitlab"} and not self._token):
                needed = "MIKROM_WEBHOOK_SECRET" if kind == "json" else "MIKROM_WEBHOOK_TOKEN"
                raise UsageError(f"MIKROM_WEBHOOKS has {kind}=…, which needs {needed}")

    def tell(self, report: RunReport, commit: str) -> None:
        """Tell what is new, from threads of their own: no run waits for it, and the next one tells what was not."""
        news = news_of(report, commit)
        for kind, url in self._hooks:
            Thread(target=self._tell, args=(kind, url, news), name="webhook", daemon=True).start()

    def _tell(self, kind: str, url: str, news: News) -> None:
        about_commit = kind in {"github", "gitlab"}
        if (about_commit and not news.commit) or (news.state == "waiting" and not about_commit):
            return
        field = _digest((url, news.project))
        digest = _digest((news.state, news.lines, news.commit if about_commit else ""))
        claim, give_up_at = f"{self._keys.told}:{field}", time.monotonic() + WEBHOOKS.deadline_s
        with suppress(RedisError):
            if not self._redis.set(claim, b"", nx=True, px=int(2000 * WEBHOOKS.deadline_s)):
                return  # another thread or control worker is at it
            before: Any = self._redis.hget(self._keys.told, field)
            if before == digest.encode() or (before is None and news.state == "ok" and not about_commit):
                pass
            elif self._sent(*self._request(kind, url, news), digest, give_up_at):
                self._redis.hset(self._keys.told, field, digest)
            self._redis.delete(claim)

    def _sent(self, url: str, body: Any, headers: dict[str, str], digest: str, give_up_at: float) -> bool:
        """Whether it was taken, or will never be; asked again and again until time is up."""
        content = msgspec.json.encode(body)
        signature = hmac.new(self._secret.encode(), content, "sha256").hexdigest()
        headers |= {"X-Mikrom-Signature-256": f"sha256={signature}"} if self._secret else {}
        headers |= {"Content-Type": "application/json", "User-Agent": "mikrom", "X-Mikrom-Delivery": digest}
        while True:
            try:
                with opened(url, offset=0, give_up_at=give_up_at, headers=headers, content=content):
                    return True
            except FetchError as error:
                if error.lasting or time.monotonic() + WEBHOOKS.pause_s > give_up_at:
                    _log.warning("a webhook was not taken: %s", error)
                    return error.lasting
            time.sleep(WEBHOOKS.pause_s)

    def _request(self, kind: str, url: str, news: News) -> tuple[str, Any, dict[str, str]]:
        """Where to send what to, with which headers of its own."""
        if kind == "json":
            return url, {"format_version": FORMAT_VERSION, **msgspec.to_builtins(news)}, {}
        if kind == "slack":
            lines = "".join(f"\n• {line}" for line in news.lines[: WEBHOOKS.lines])
            text = f"*{news.project}* at {news.revision}: {news.summary}{lines}"
            return url, {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}, {}
        state, name = _STATES[news.state], f"mikrom/{news.project}"
        said = news.summary.replace(f"the source is broken: {news.commit} ", "", 1)[: WEBHOOKS.status_characters]
        status = {"state": state, "context": name, "description": said}
        headers = {"Authorization": f"Bearer {self._token}"}
        if kind == "gitlab":
            status |= {"state": state.replace("failure", "failed"), "name": name}
            headers = {"PRIVATE-TOKEN": self._token}
        return f"{url.rstrip('/')}/statuses/{news.commit}", status, headers


def _digest(value: Any) -> str:
    return blake2b(msgspec.json.encode(value), digest_size=16).hexdigest()


def news_of(report: RunReport, commit: str) -> News:
    """What a run found and left, in words without secrets."""
    record = record_of(report)
    _, *rows = DriftReport(plan=report.plan, drift=tuple(drifted(report.plan.changes)), pending=()).rows()
    drift = (f"{vm} on {host}: {path}: {before} → {after} ({cause})" for vm, host, path, before, after, cause in rows)
    problem = (f"the source is broken: {report.source_problem}",) if report.source_problem else ()
    lines = (*problem, *drift, *record.failed, *record.refused, *record.unreachable)
    broken = re.match("[0-9a-f]{40}", report.source_problem)
    state = "failing" if record.exit_code or problem else "healed" if rows else "ok"
    if state == "ok" and not record.conclusion.startswith("Converged"):
        state = "waiting"
    return News(
        project=report.plan.project,
        state=state,
        summary=sanitize("".join(problem) or record.conclusion),
        lines=tuple(map(sanitize, lines)),
        revision=report.plan.revision,
        commit=broken[0] if broken else commit,
    )

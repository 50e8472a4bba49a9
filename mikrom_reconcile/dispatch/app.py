"""The Celery app. Every setting was measured. A gevent pool ignores or breaks `worker_max_tasks_per_child`,
`task_acks_late`, `task_soft_time_limit`, `task_reject_on_worker_lost` and `worker_soft_shutdown_timeout`.
"""

import time
from functools import cached_property
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from redis import Redis

from mikrom_reconcile import traces
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.dispatch import celery_patches
from mikrom_reconcile.dispatch.transport.broker import LAST, ORDERS, STEPS, Keys, broker_url, client_of, split_tls
from mikrom_reconcile.settings import Settings
from mikrom_reconcile.times_and_sizes import BROKER, SERVICES

_HIDDEN = "(not shown)"


class FleetApp(Celery):  # type: ignore[misc]  # Celery has no types
    """Celery with our settings, and no argument shown to who watches events (Flower)."""

    settings: Settings
    keys: Keys

    @cached_property
    def redis(self) -> Redis:
        """The client for everything that is not Celery's; it connects when it is first used."""
        return client_of(broker_url(self.settings))

    def close(self) -> None:
        """As Celery's, with our client."""
        if "redis" in self.__dict__:
            self.redis.close()
        super().close()

    def send_task(self, name: str, *args: Any, **options: Any) -> Any:
        """As Celery's, with arguments hidden in Flower, the trace that goes on, and when it was sent (for metrics)."""
        options["headers"] = {**(options.get("headers") or {}), **traces.carried(), "sent_at": time.time()}
        options.setdefault("argsrepr", _HIDDEN)
        options.setdefault("kwargsrepr", _HIDDEN)
        return super().send_task(name, *args, **options)


def make_app(settings: Settings) -> FleetApp:
    """The app of a worker, of Beat, of Flower or of a client. Connects to nothing. Raises UsageError."""
    url, _ = split_tls(broker_url(settings))
    app = FleetApp("mikrom", broker=url, backend=url, set_as_current=False)
    app.settings, app.keys = settings, Keys(settings.queue)
    app.conf.update(configuration(settings))
    celery_patches.install(app, written_down=settings.worker_role != "host")
    return app


def owner_of(settings: Settings) -> str:
    """Whose a worker's answers are, and the messages that it has fetched."""
    return "control" if settings.worker_role == "control" else f"host:{settings.host}"


def configuration(settings: Settings) -> dict[str, Any]:
    """What Celery is told. Raises UsageError without a broker."""
    keys = Keys(settings.queue)
    told = _messages(keys, settings) | _transport(keys, settings) | _beat(settings)
    _, tls = split_tls(broker_url(settings))
    if tls:  # without it the broker's connection takes any certificate
        told |= {"broker_use_ssl": dict(tls), "redis_backend_use_ssl": dict(tls)}
    return told


def _messages(keys: Keys, settings: Settings) -> dict[str, Any]:
    own = keys.queue if settings.worker_role == "control" else keys.host_queue(settings.host)
    return {
        "accept_content": ["json"],
        "task_default_queue": keys.queue,
        "task_queues": [Queue(own, Exchange(own), routing_key=own)],  # consumed by a worker that is not told with -Q
        "task_default_priority": ORDERS[False][1],
        "task_publish_retry_policy": {"max_retries": 0},
        "result_expires": 3600,  # for people who call VM tasks themselves; the engine ignores results
        "worker_prefetch_multiplier": 2,  # 1 waits for the poll time-out whenever slots are few
        "worker_send_task_events": True,
        "worker_redirect_stdouts": False,
    }


def _transport(keys: Keys, settings: Settings) -> dict[str, Any]:
    unacked = keys.unacked(owner_of(settings))
    return {
        # expiring queues have every worker sweep what is not its own; a host's is only heard, and never holds anything
        "control_queue_expires": None if settings.worker_role == "host" else 10.0,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # a supervised worker waits for its broker for ever
        "broker_channel_error_retry": True,  # and for one that answers, but with MISCONF, READONLY, OOM, NOPERM, …
        "broker_transport_options": {
            "max_connections": 4 * SERVICES.host_slots, "max_retries": 0,
            "socket_timeout": 5, "socket_connect_timeout": 2, "socket_keepalive": True,
            "health_check_interval": BROKER.health_check_s,
            "priority_steps": list(STEPS), "queue_order_strategy": "priority",
            # one set per host: with the shared ones any host reads what another has fetched
            "unacked_key": unacked,
            "unacked_index_key": f"{unacked}:index",
            "unacked_mutex_key": f"{unacked}:mutex",
        },
        "result_backend_thread_safe": True,  # or each task, being a greenlet, makes a client and connections of its own
        "redis_max_connections": 4 * SERVICES.host_slots,
        "redis_socket_timeout": 5.0, "redis_socket_connect_timeout": 2.0,
        "result_backend_transport_options": {"retry_policy": {"max_retries": 0}},
    }  # fmt: skip


def _beat(settings: Settings) -> dict[str, Any]:
    options = {"queue": settings.queue, "priority": LAST, "ignore_result": True}
    intervals = {"reconcile": _schedule(settings.reconcile_interval), "cleanup": BROKER.cleanup_interval_s}
    return {
        "beat_scheduler": "mikrom_reconcile.dispatch.control_worker.tasks:OncePerInterval",
        "beat_max_loop_interval": 5,
        "beat_schedule": {
            name: {"task": f"mikrom.{name}", "schedule": interval, "options": options}
            for name, interval in intervals.items()
        },
    }


def _schedule(interval: float | str) -> Any:
    if isinstance(interval, float):
        return interval
    from celery.schedules import crontab  # noqa: PLC0415 - only where there is a cron line

    try:
        return crontab.from_string(interval)
    except ValueError as error:
        raise UsageError(f"MIKROM_RECONCILE_INTERVAL={interval!r}: {error} Example: */10 * * * *") from None

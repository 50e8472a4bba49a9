"""Ties the tasks to an app, and heartbeat and supervision to a process's life. Wiring hands in the parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from celery import signals

from mikrom_reconcile import traces
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.control.sources.last_good import LastGood
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.errors import MikromError, SetupError, UsageError
from mikrom_reconcile.dispatch import log_lines
from mikrom_reconcile.dispatch.app import FleetApp, Parts
from mikrom_reconcile.dispatch.control_worker import cleanup, metrics, source_sync
from mikrom_reconcile.dispatch.control_worker import tasks as runs
from mikrom_reconcile.dispatch.host_worker import gevent_patches, tasks
from mikrom_reconcile.dispatch.host_worker.host_events import keeper
from mikrom_reconcile.dispatch.transport import deadlines
from mikrom_reconcile.dispatch.transport.broker import broker_url, is_remote
from mikrom_reconcile.dispatch.transport.heartbeats import Heartbeat
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.system import locks

_AS_OURS = {"bind": True, "Request": "mikrom_reconcile.dispatch.host_worker.redacted_request:QuietRequest"}


def register(
    app: FleetApp,
    *,
    agent: Callable[[], HostAgent],
    engine: Callable[[], Engine],
    source: LastGood,
) -> None:
    """Give `app` its tasks. Each callable is asked again for every task and may answer with the same object."""
    app.parts = Parts(agent=agent, engine=engine, source=source)
    for verb, function in tasks.VM_TASKS.items():
        app.task(function, name=f"mikrom.{verb}_vm", **_AS_OURS)
    app.task(tasks.observe_host_task, name="mikrom.observe_host", **_AS_OURS)
    app.task(tasks.console_task, name="mikrom.console", **_AS_OURS)
    app.task(tasks.images_task, name="mikrom.images", **_AS_OURS)
    app.task(runs.plan_task, name="mikrom.plan", **_AS_OURS)
    app.task(runs.apply_task, name="mikrom.apply", **_AS_OURS)
    app.task(runs.reconcile_task, name="mikrom.reconcile", **_AS_OURS)
    app.task(source_sync.sync_source_task, name="mikrom.sync_source", **_AS_OURS)
    app.task(cleanup.cleanup_task, name="mikrom.cleanup", **_AS_OURS)
    signals.after_setup_logger.connect(log_lines.set_up, weak=False)
    signals.worker_init.connect(_on_worker_init, weak=False)
    signals.worker_ready.connect(_on_worker_ready, weak=False)
    signals.worker_shutting_down.connect(_on_shutting_down, weak=False)
    signals.worker_shutdown.connect(_on_worker_shutdown, weak=False)
    signals.beat_init.connect(_on_beat_init, weak=False)


def _on_worker_init(sender: Any, **_: Any) -> None:
    """Fail now and in one line, not with the first action."""
    app: FleetApp = sender.app
    if deadlines.is_gevent():
        gevent_patches.mend()
    traces.set_up(app.settings.worker_role)
    try:
        if app.settings.worker_role == "host":
            app.parts.agent()
            _be_the_only_one(app)
            signals.celeryd_after_setup.connect(_supervise, weak=False)
        else:
            app.heartbeat = _heartbeat(app, "control")
            app.metrics = metrics.serve(app)
        app.load_key()
    except (MikromError, OSError) as error:  # Celery would go on after anything else, and say nothing
        raise SystemExit(f"mikrom worker: {error}") from error


def _be_the_only_one(app: FleetApp) -> None:
    """Raises MikromError where another worker is this host's, or could be: two would share one queue and no records."""
    host, state_dir = app.settings.host, app.settings.state_dir
    if host == "localhost" and is_remote(broker_url(app.settings)):
        raise UsageError(f"MIKROM_HOST is {host}, which every machine is: set it to this host's name in the inventory")
    if locks.open_taken(state_dir / "locks" / "worker") is None:  # held until this process ends
        raise SetupError(f"another host worker runs here with MIKROM_STATE_DIR={state_dir}: end it first")
    app.heartbeat = _heartbeat(app, "host")
    app.heartbeat.refuse_a_second()


def _supervise(instance: Any, **_: Any) -> None:
    """Before the broker is asked for anything: VMs that die come back whatever it says."""
    app: FleetApp = instance.app
    agent = app.parts.agent()
    agent.supervise(on_outcome=keeper(RedisStore(app.redis, prefix=app.keys.prefix), app.settings.host))
    signals.worker_shutting_down.connect(lambda **_: agent.stop_supervision(), weak=False)


def _on_worker_ready(sender: Any, **_: Any) -> None:
    app: FleetApp = sender.app
    app.heartbeat.start()


def _on_beat_init(sender: Any, **_: Any) -> None:
    app: FleetApp = sender.app
    app.heartbeat = _heartbeat(app, "beat")
    app.heartbeat.start()


def _heartbeat(app: FleetApp, role: str) -> Heartbeat:
    host = app.settings.host
    if role == "host":
        agent = app.parts.agent()
        return Heartbeat(app.redis, app.keys, f"host:{host}", state_dir=app.settings.state_dir, fence=agent.stop_all)
    # control workers and Beats may be several on one machine
    return Heartbeat(app.redis, app.keys, f"{role}:{host}:{os.getpid()}")


def _on_shutting_down(**_: Any) -> None:
    deadlines.stop()


def _on_worker_shutdown(sender: Any, **_: Any) -> None:
    traces.flush()
    app: FleetApp = sender.app
    app.answering.close()
    app.heartbeat.leave()

"""Ties the tasks to an app, and what goes on beside them to the life of a worker's or Beat's process.

Wiring hands in what the tasks need; each task is given the two or three parts that it uses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

from celery import signals

from mikrom_reconcile import traces
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.control.sources.last_good import LastGood
from mikrom_reconcile.control.stores.redis import RedisStore
from mikrom_reconcile.core.model.errors import MikromError, SetupError, UsageError
from mikrom_reconcile.core.model.plan import Verb
from mikrom_reconcile.dispatch import celery_patches
from mikrom_reconcile.dispatch.app import FleetApp
from mikrom_reconcile.dispatch.control_worker import metrics
from mikrom_reconcile.dispatch.control_worker.source_sync import SourceSync
from mikrom_reconcile.dispatch.control_worker.tasks import ControlTasks
from mikrom_reconcile.dispatch.host_worker.host_events import keeper
from mikrom_reconcile.dispatch.host_worker.tasks import HostTasks
from mikrom_reconcile.dispatch.transport import deadlines
from mikrom_reconcile.dispatch.transport.broker import broker_url, is_remote
from mikrom_reconcile.dispatch.transport.heartbeats import Heartbeat
from mikrom_reconcile.dispatch.transport.order_envelope import OrderEnvelope, load_signer, load_verifier
from mikrom_reconcile.dispatch.transport.reply_sender import ReplySender
from mikrom_reconcile.dispatch.transport.rpc import WorkerId
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.system import locks

if TYPE_CHECKING:
    from mikrom_reconcile.dispatch.transport.signing import Verifier

VERBS: tuple[Verb, ...] = get_args(Verb)
"""Each has a task, `mikrom.<verb>_vm`."""


def register(
    app: FleetApp,
    *,
    agent: Callable[[], HostAgent],
    engine: Callable[[], Engine],
    source: LastGood,
) -> Worker:
    """Give `app` its tasks. Each callable is asked again for every task and may answer with the same object."""
    worker = Worker(app, agent)
    synced = SourceSync(app.redis, app.keys, source, app.settings.specs or "")
    worker.control = ControlTasks(app.redis, app.settings, engine=engine, source=synced, worker_id=worker.id)
    worker.host = HostTasks(
        host=app.settings.host,
        queue=app.keys.host_queue(app.settings.host),
        agent=agent,
        replies=worker.replies,
        is_genuine=worker.is_genuine,
    )
    host, control = worker.host, worker.control
    as_ours = {"Request": f"{celery_patches.__name__}:RedactedRequest", "shared": False}
    for verb in VERBS:
        app.task(_vm_task(verb, host, control), name=f"mikrom.{verb}_vm", bind=True, **as_ours)
    for task in (
        host.observe_host,
        host.console,
        host.images,
        control.plan,
        control.apply,
        control.reconcile,
        control.sync_source,
        control.cleanup,
    ):
        app.task(task, name=f"mikrom.{task.__name__}", typing=False, **as_ours)  # Celery would miss the argument `self`
    signals.after_setup_logger.connect(celery_patches.set_up_log, weak=False)
    signals.worker_init.connect(worker.on_init, weak=False)
    signals.worker_ready.connect(worker.on_ready, weak=False)
    signals.worker_shutting_down.connect(_on_shutting_down, weak=False)
    signals.worker_shutdown.connect(worker.on_shutdown, weak=False)
    signals.beat_init.connect(worker.on_beat_init, weak=False)
    return worker


def _vm_task(verb: Verb, host: HostTasks, control: ControlTasks) -> Callable[..., dict[str, Any]]:
    def run(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
        """Control sends an order to a host; people send a VM's name to control, which makes orders of it."""
        return host.carry_out(task, verb, order) if order else control.by_hand(verb, vm)

    run.__name__ = f"{verb}_vm_task"
    return run


class Worker:
    """One worker process, or a Beat: what it does when it begins, connects and ends."""

    host: HostTasks
    control: ControlTasks
    heartbeat: Heartbeat

    def __init__(self, app: FleetApp, agent: Callable[[], HostAgent]) -> None:
        self.replies = ReplySender(app.redis, app.keys, f"host:{app.settings.host}")
        self._app = app
        self._settings = app.settings
        self._agent = agent
        self._verifier: Verifier | None = None
        celery_patches.on_connect(app, self.on_connect)

    def id(self) -> WorkerId:
        """Who this process is, once it lives."""
        return WorkerId(owner=self.heartbeat.owner, start_id=self.heartbeat.start_id)

    def is_genuine(self, sent: OrderEnvelope) -> bool:
        """Whether control made this order for this worker; without a key of its own, a host believes it."""
        if self._verifier is None:
            return True
        queue, start_id = self._app.keys.host_queue(self._settings.host), self.heartbeat.start_id
        return self._verifier.is_genuine(sent.order, sent.signature, queue=queue, start_id=start_id, call=sent.call)

    def on_init(self, **_: Any) -> None:
        """Fail now and in one line, not with the first action."""
        if deadlines.is_gevent():
            celery_patches.install_gevent()
        traces.set_up(self._settings.worker_role)
        try:
            self._begin_host() if self._settings.worker_role == "host" else self._begin_control()
        except (MikromError, OSError) as error:  # Celery would go on after anything else, and say nothing
            raise SystemExit(f"mikrom worker: {error}") from error

    def _begin_host(self) -> None:
        """Raises MikromError where another worker is this host's, or could be: two would share one queue."""
        host, state_dir, app = self._settings.host, self._settings.state_dir, self._app
        agent = self._agent()
        if host == "localhost" and is_remote(broker_url(self._settings)):
            remedy = "set it to this host's name in the inventory"
            raise UsageError(f"MIKROM_HOST is {host}, which every machine is: {remedy}")
        if locks.open_taken(state_dir / "locks" / "worker") is None:  # held until this process ends
            raise SetupError(f"another host worker runs here with MIKROM_STATE_DIR={state_dir}: end it first")
        owner = f"host:{host}"
        self.heartbeat = Heartbeat(app.redis, app.keys, owner, state_dir=state_dir, fence=agent.stop_all)
        self.heartbeat.refuse_a_second()
        self._verifier = load_verifier(self._settings)
        self.replies.start()
        signals.celeryd_after_setup.connect(self._supervise, weak=False)

    def _begin_control(self) -> None:
        self.heartbeat = self._heartbeat("control")
        self.control.metrics = metrics.serve(self._settings.metrics, self._app.redis, self._app.keys)
        load_signer(self._settings)

    def _heartbeat(self, role: str) -> Heartbeat:
        """Control workers and Beats may be several on one machine."""
        return Heartbeat(self._app.redis, self._app.keys, f"{role}:{self._settings.host}:{os.getpid()}")

    def _supervise(self, **_: Any) -> None:
        """Before the broker is asked for anything: VMs that die come back whatever it says."""
        agent, app = self._agent(), self._app
        agent.supervise(on_outcome=keeper(RedisStore(app.redis, prefix=app.keys.prefix), self._settings.host))
        signals.worker_shutting_down.connect(lambda **_: agent.stop_supervision(), weak=False)

    def on_connect(self) -> None:
        """Have control know that what it sent before may be lost: a host's messages are acknowledged early."""
        self.heartbeat.begin_anew()

    def on_ready(self, **_: Any) -> None:
        """Be seen from now on."""
        self.heartbeat.start()

    def on_beat_init(self, **_: Any) -> None:
        """A Beat is seen, too."""
        self.heartbeat = self._heartbeat("beat")
        self.heartbeat.start()

    def on_shutdown(self, **_: Any) -> None:
        """Send what is left, and be gone at once."""
        traces.flush()
        self.replies.close()
        self.heartbeat.leave()


def _on_shutting_down(**_: Any) -> None:
    deadlines.stop()

"""Ties the tasks to an app, and what goes on beside them to the life of a worker's or Beat's process."""

import logging
import os
import time
from collections.abc import Callable
from typing import Any, get_args

from celery import current_task, signals

from mikrom_reconcile import traces
from mikrom_reconcile.control.ports import Engine, RunStore
from mikrom_reconcile.control.snapshot import Snapshots
from mikrom_reconcile.control.sources.last_good import LastGood
from mikrom_reconcile.core.model.errors import MikromError, SetupError, UsageError
from mikrom_reconcile.core.model.plan import Verb
from mikrom_reconcile.dispatch import celery_patches
from mikrom_reconcile.dispatch.app import FleetApp, owner_of
from mikrom_reconcile.dispatch.control_worker import metrics
from mikrom_reconcile.dispatch.control_worker.tasks import ControlTasks
from mikrom_reconcile.dispatch.control_worker.webhooks import Webhooks
from mikrom_reconcile.dispatch.host_worker.tasks import HostTasks, keeper
from mikrom_reconcile.dispatch.transport.broker import broker_url, is_remote
from mikrom_reconcile.dispatch.transport.order_envelope import load_signer
from mikrom_reconcile.dispatch.transport.rpc import ReplySender, WorkerId
from mikrom_reconcile.dispatch.transport.shared_state import Heartbeat
from mikrom_reconcile.host.agent import HostAgent
from mikrom_reconcile.system import locks


class FleetProcess:
    """One process of a fleet: its tasks, and what it does when it begins, connects and ends."""

    def __init__(
        self,
        app: FleetApp,
        *,
        agent: Callable[[], HostAgent],
        engine: Callable[[], Engine],
        source: LastGood,
        store: RunStore,
        snapshots: Snapshots,
    ) -> None:
        self.heartbeat: Heartbeat
        self.replies = ReplySender(app.redis, app.keys, owner_of(app.settings))
        self._app, self._settings, self._agent, self._store = app, app.settings, agent, store
        self._host = HostTasks(app.settings.host, app.keys.host_queue(app.settings.host), agent, self.replies)
        self._control = ControlTasks(
            app.redis, app.keys, app.settings, self.replies, engine, source, self._worker_id, snapshots
        )
        self._add_tasks()
        # control has to know that what it sent before may be lost: a host's messages are acknowledged early
        celery_patches.on_connect(app, lambda: self.heartbeat.begin_anew())  # noqa: PLW0108 - there is none yet
        signals.after_setup_logger.connect(set_up_log, weak=False)
        signals.worker_init.connect(self._on_init, weak=False)
        signals.worker_ready.connect(lambda **_: self.heartbeat.start(), weak=False)
        signals.worker_shutting_down.connect(lambda **_: celery_patches.stop(), weak=False)
        signals.worker_shutdown.connect(self._on_shutdown, weak=False)
        signals.beat_init.connect(self._on_beat_init, weak=False)

    def _worker_id(self) -> WorkerId:
        return WorkerId(owner=self.heartbeat.owner, start_id=self.heartbeat.start_id)

    def _add_tasks(self) -> None:
        host, control = self._host, self._control
        as_ours = {"Request": f"{celery_patches.__name__}:RedactedRequest", "shared": False}
        for verb in get_args(Verb):
            self._app.task(_vm_task(verb, host, control), name=f"mikrom.{verb}_vm", bind=True, **as_ours)
        of_host = [host.observe_host, host.console]
        for task in (*of_host, control.plan, control.apply, control.reconcile, control.sync_source, control.cleanup):
            # Celery's own check of arguments would miss `self`
            self._app.task(task, name=f"mikrom.{task.__name__}", typing=False, **as_ours)

    def _on_init(self, **_: Any) -> None:
        """Fail now and in one line, not with the first action."""
        celery_patches.install_gevent()
        traces.set_up(self._settings.worker_role)
        try:
            self._begin_host() if self._settings.worker_role == "host" else self._begin_control()
        except (MikromError, OSError) as error:  # Celery would go on after anything else, and say nothing
            raise SystemExit(f"mikrom worker: {error}") from error
        self.replies.start()

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
        if self._settings.verify_key is not None:
            from mikrom_reconcile.dispatch.transport.signing import Verifier  # noqa: PLC0415 - only who has a key pays

            verifier, queue = Verifier(self._settings.verify_key), self._host.queue
            self._host.is_genuine = lambda sent: verifier.is_genuine(
                sent.order, sent.signature, queue=queue, start_id=self.heartbeat.start_id, call=sent.call
            )
        signals.celeryd_after_setup.connect(self._supervise, weak=False)

    def _begin_control(self) -> None:
        self.heartbeat = self._heartbeat_of("control")
        if self._settings.metrics:
            page = self._control.page
            self._control.metrics = metrics.serve(self._settings, self._app.redis, self._app.keys, page)
        self._control.webhooks = Webhooks(self._settings, self._app.redis, self._app.keys)
        load_signer(self._settings)

    def _heartbeat_of(self, role: str) -> Heartbeat:
        """Control workers and Beats may be several on one machine."""
        return Heartbeat(self._app.redis, self._app.keys, f"{role}:{self._settings.host}:{os.getpid()}")

    def _supervise(self, **_: Any) -> None:
        """Before the broker is asked for anything: VMs that die come back whatever it says."""
        agent = self._agent()
        agent.supervise(on_outcome=keeper(self._store, self._settings.host))
        signals.worker_shutting_down.connect(lambda **_: agent.stop_supervision(), weak=False)

    def _on_beat_init(self, **_: Any) -> None:
        self.heartbeat = self._heartbeat_of("beat")
        self.heartbeat.start()

    def _on_shutdown(self, **_: Any) -> None:
        traces.flush()
        self.replies.close()
        self.heartbeat.leave()


def _vm_task(verb: Verb, host: HostTasks, control: ControlTasks) -> Callable[..., dict[str, Any]]:
    def run(task: Any, vm: str = "", **order: Any) -> dict[str, Any]:
        """Control sends an order to a host; people send a VM's name to control, which makes orders of it."""
        return host.carry_out(task, verb, order) if order else control.by_hand(verb, vm)

    run.__name__ = f"{verb}_vm_task"
    return run


FIELDS = ("celery.task_id", "run", "vm", "host", "step", "duration_s")


class FieldsFormatter(logging.Formatter):
    """Adds the fields that a record has, with the id of the task that it was logged in; the time is in UTC."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """The line, traceback included."""
        if current_task:
            record.__dict__.setdefault("celery.task_id", current_task.request.id)
        line = super().format(record)
        fields = [f"{name}={_text(record.__dict__[name])}" for name in FIELDS if record.__dict__.get(name)]
        return f"{line} [{' '.join(fields)}]" if fields else line


def set_up_log(logger: logging.Logger, **_: Any) -> None:
    """Receiver of Celery's `after_setup_logger`."""
    # what no line shows is not looked up: under gevent a name of a thread alone takes as long as the rest of a record
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for handler in logger.handlers:
        handler.setFormatter(FieldsFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def _text(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return f'"{text}"' if " " in text else text

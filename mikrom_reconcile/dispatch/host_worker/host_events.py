"""What a host does by itself, told to the history that runs are kept in, as soon as the broker can be reached.

It must never keep the supervision waiting, whatever the broker does.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable

from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.run import SUPERVISION, ActionOutcome, RunRecord
from mikrom_reconcile.limits import BROKER
from mikrom_reconcile.output.run_result import CHANGES_OR_FAILED, FAILED
from mikrom_reconcile.output.run_text import outcome_line
from mikrom_reconcile.output.text import PLAIN

_log = logging.getLogger(__name__)


def keeper(store: RunStore, host: str) -> Callable[[str, ActionOutcome], None]:
    """How the supervision tells what it did, with the project that it concerns."""
    waiting: queue.Queue[RunRecord] = queue.Queue(BROKER.host_events_waiting)

    def keep() -> None:
        while True:
            record = waiting.get()
            while not _kept(store, record):
                time.sleep(BROKER.host_event_retry_s)

    def tell(project: str, outcome: ActionOutcome) -> None:
        try:
            waiting.put_nowait(_record(host, project, outcome))
        except queue.Full:
            _log.warning("%s: the broker is away, the history lacks a restart", outcome.vm, extra={"host": host})

    threading.Thread(target=keep, name="keep deeds", daemon=True).start()
    return tell


def _kept(store: RunStore, record: RunRecord) -> bool:
    try:
        store.save(record)
    except MikromError as error:
        _log.debug("%s", error)
        return False
    return True


def _record(host: str, project: str, outcome: ActionOutcome) -> RunRecord:
    return RunRecord(
        run_id=f"{host}-{secrets.token_hex(6)}",
        origin=f"{SUPERVISION} of {host}",
        project=project,
        started_at=outcome.started_at,
        finished_at=outcome.finished_at,
        outcomes=(outcome,),
        conclusion=f"{outcome_line(outcome, PLAIN)}: {'; '.join(outcome.reasons)}",
        exit_code=CHANGES_OR_FAILED if outcome.result in FAILED else 0,
    )

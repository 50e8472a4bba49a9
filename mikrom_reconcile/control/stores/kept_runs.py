"""How runs are kept in any store: in rooms, so that none of them pushes the others out, and what repeats once."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime
from typing import Any

import msgspec

from mikrom_reconcile.core.model.encoding import digest_of, ready
from mikrom_reconcile.core.model.observed import Placements
from mikrom_reconcile.core.model.run import BEAT, SUPERVISION, RunRecord
from mikrom_reconcile.times_and_sizes import RUNS

ROOM = {"asked": 500, "unattended": 500, "silent": 100, "going": 100}
"""How many runs are kept: that changed something and a person or a pipeline asked for, that changed something
unattended, that changed nothing, and that have not ended."""


def room_of(run: RunRecord) -> str:
    """The room that it is kept in."""
    if run.origin.startswith(SUPERVISION):
        return f"host:{run.origin.rpartition(' ')[2]}"
    if run.exit_code is None:
        return "going"
    if not any(outcome.result == "done" for outcome in run.outcomes):
        return "silent"
    return "unattended" if run.origin == BEAT else "asked"


def speaks_for_itself(room: str, run: RunRecord) -> bool:
    """Whether it may be in this room: a compromised host can lie only about itself."""
    host = room.removeprefix("host:")
    return room in ROOM or (room_of(run) == room and all(outcome.host == host for outcome in run.outcomes))


def size_of(room: str) -> int:
    """How many runs a room has place for."""
    return ROOM.get(room, RUNS.kept_per_host)


def name_of(run: RunRecord) -> str:
    """Its name in its room, which unattended runs that came to the same share."""
    if run.exit_code is None or not run.origin.startswith((BEAT, SUPERVISION)):
        return run.run_id
    outcomes = [
        (outcome.vm, outcome.host, outcome.verb, outcome.result, outcome.error, outcome.reasons, outcome.fields)
        for outcome in run.outcomes
    ]
    left = (run.failed, run.refused, run.unreachable, run.source_problem)
    return digest_of(msgspec.to_builtins((run.origin, run.project, run.revision, outcomes, left)))


def repeated(before: bytes | None, run: RunRecord) -> RunRecord:
    """The run, counting those like it that were kept `before`."""
    known = unpacked(run.run_id, before, run.finished_at) if before else None
    if known is None or known.run_id == run.run_id:
        return run
    return msgspec.structs.replace(run, since=known.since or known.started_at, times=known.times + 1)


def placements_in(content: Any) -> Placements:
    """What was remembered of a project; nothing where another release wrote it in another shape."""
    try:
        return msgspec.json.decode(content, type=ready(Placements)) if content else Placements()
    except msgspec.MsgspecError:
        return Placements()


def packed(run: RunRecord) -> bytes:
    """A run as it is kept, compressed: many outcomes are nearly the same."""
    return zlib.compress(msgspec.json.encode(run), 1)


def unpacked(name: str, content: Any, at: datetime | float) -> RunRecord:
    """The run that was kept; of one that another release wrote in another shape no more than that."""
    try:
        return msgspec.json.decode(zlib.decompressobj().decompress(content, RUNS.record_bytes), type=ready(RunRecord))
    except (msgspec.MsgspecError, zlib.error):
        when = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
        why = "cannot be shown: another release wrote it"
        return RunRecord(run_id=name, origin="unknown", started_at=when, finished_at=when, conclusion=why)

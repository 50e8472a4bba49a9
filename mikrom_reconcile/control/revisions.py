"""Revisions: what was applied, kept so that it can come back, and projects that were rolled back or are frozen."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any, cast

import msgspec
from msgspec.structs import asdict, replace

from mikrom_reconcile.control.ports import RunStore
from mikrom_reconcile.core.model.desired import Freeze
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.encoding import UNREADABLE, decoded, digest_of, ready, texts_digest
from mikrom_reconcile.core.model.errors import HeldError, UsageError
from mikrom_reconcile.core.model.plan import BEAT, Plan, Revision, RunRecord, RunRequest
from mikrom_reconcile.core.planning.context import numbered
from mikrom_reconcile.output.run_result import IN_PROGRESS
from mikrom_reconcile.times_and_sizes import RUNS, SPECS

Applied = tuple[SourceTree, dict[str, Any]]  # the specs, and the variables that won over theirs

_LIST, _CONTENTS, _FREEZES = "revisions", "revisions-specs", "freezes"  # the shelves
_LISTED = "`mikrom history --revisions` lists those that are kept"
_UNTIL = "until its source moves on, or `mikrom rollback --resume`"


def begin(store: RunStore, request: RunRequest, plan: Plan, begun: RunRecord) -> Revision | None:
    """The revision that a run applies, kept from now on; None for a run past the specs, or of which all is refused.
    Only the holder of the project's lease calls it. Raises HeldError where Beat is to leave the project alone.
    """
    if request.verb is not None or request.destroy:
        return None
    current = next(iter(kept(store, plan.project)), None)
    if request.origin == BEAT and current and current.held == texts_digest(request.tree):
        raise HeldError(f"project {plan.project} was rolled back, and is left alone {_UNTIL}")
    if plan.changes and all(change.kind == "blocked" or change.held_by == "freeze" for change in plan.changes):
        return None
    held = request.held if request.restores else current.held if current and plan.selected is not None else ""
    files = sorted((PurePath(file.path).name, file.text) for file in request.tree.files)  # wherever they lie
    content = digest_of((files, request.extra_vars))
    if current and current.content == content and request.restores in {0, current.restores}:
        if current.held != held:
            keep(store, current := replace(current, held=held))
        return current
    packed = zlib.compress(msgspec.json.encode((request.tree, request.extra_vars)))
    about = asdict(begun) | {"number": current.number + 1 if current else 1, "restores": request.restores}
    revision = Revision(**about, plan=plan.id, content=content, size=len(packed), held=held)
    store.put(_CONTENTS, f"{plan.project} {content}", packed)
    keep(store, revision)
    if current:  # only the latest is held, and runs of a project come one after the other
        end = current.conclusion.replace(IN_PROGRESS, "Killed" if current.exit_code is None else IN_PROGRESS)
        keep(store, replace(current, held="", conclusion=end))
    _make_room(store, plan.project)
    return revision


def keep(store: RunStore, revision: Revision) -> None:
    """Keep a revision as it is now, instead of what was kept of it before."""
    store.put(_LIST, f"{revision.project} {revision.number}", msgspec.json.encode(revision))


def kept(store: RunStore, project: str | None = None) -> list[Revision]:
    """The revisions of a project, or of each, newest first, without those that another release wrote."""
    every = (decoded(packed, Revision) for packed in store.shelf(_LIST))
    found = [one for one in every if one and project in {None, one.project}]
    return sorted(found, key=lambda one: (one.project, -one.number))  # clocks may be set back


def noted(store: RunStore, request: RunRequest, plan: Plan) -> Plan:
    """The plan, which says so if it goes back to a revision, or if its project has been rolled back."""
    current = next(iter(kept(store, plan.project)), None)
    if request.restores:
        note = f"this goes back to revision {request.restores}: then Beat leaves project {plan.project} alone {_UNTIL}"
    elif current and current.held:
        note = held_note(current)
    else:
        return plan
    return numbered(plan, warnings=(note, *plan.warnings))


def held_note(current: Revision) -> str:
    """That a project was rolled back, and what ends it."""
    back = f" to revision {current.restores}" if current.restores else ""
    return f"project {current.project} is rolled back{back}: Beat leaves it alone {_UNTIL}"


def called(revisions: Iterable[Revision], name: str) -> list[Revision]:
    """Those that `3` or `demo/3` may mean."""
    return [one for one in revisions if name in {str(one.number), f"{one.project}/{one.number}"}]


def named(revisions: Sequence[Revision], name: str | None) -> Revision:
    """The revision called `3` or `demo/3`, or the last before the current one that converged. Raises UsageError."""
    projects = sorted({one.project for one in revisions})
    if name is not None:
        found = called(revisions, name)
    elif revisions and revisions[0].restores and not revisions[0].converged:  # it goes on
        found = called(revisions[1:], str(revisions[0].restores))
    else:
        good = (one for one in revisions if one.converged and one.content != revisions[0].content)
        found = [one for one in good if one.number < (revisions[0].restores or revisions[0].number)][:1]
    if len(projects) > 1 and (name is None or len(found) > 1):
        raise UsageError(f"there are {', '.join(projects)}: name a revision as {projects[0]}/1; {_LISTED}")
    if not found:
        raise UsageError(f"there is no {f'revision {name}' if name else 'earlier revision that converged'}; {_LISTED}")
    return found[0]


def applied(store: RunStore, revision: Revision) -> Applied:
    """What was applied then. Raises UsageError where it cannot be read any more."""
    packed = store.get(_CONTENTS, f"{revision.project} {revision.content}") or b""
    try:
        content = zlib.decompressobj().decompress(packed, SPECS.kept_bytes)
        found: Applied = msgspec.json.decode(content, type=ready(cast("Any", Applied)))
    except (*UNREADABLE, zlib.error) as error:
        raise UsageError(f"the specs of revision {revision.number} cannot be read any more; {_LISTED}") from error
    return found


def resume(store: RunStore, holder: str) -> list[str]:
    """Let Beat go on with the projects that were rolled back; their names. Raises BusyError while one is changed."""
    projects = sorted({one.project for one in kept(store) if one.held})
    for project in projects:
        lease = store.lease(project, holder=holder, ttl_s=RUNS.lease_ttl_s, at_least=1)
        try:
            keep(store, replace(kept(store, project)[0], held=""))
        finally:
            lease.release()
    return projects


def keep_freeze(store: RunStore, project: str, freeze: Freeze) -> None:
    """Freeze a project by command, instead of how it was frozen before. One that has ended stays, as what it was."""
    store.put(_FREEZES, project, msgspec.json.encode((project, freeze)))


def freezes(store: RunStore) -> dict[str, Freeze]:
    """The freezes that were asked for by command, by project; some may have ended by themselves."""
    return dict(filter(None, (decoded(packed, tuple[str, Freeze]) for packed in store.shelf(_FREEZES))))


def _make_room(store: RunStore, project: str) -> None:
    """Drop the oldest; the current one and the last that converged stay, whatever their size."""
    every = kept(store, project)
    good = [one for one in every if one.converged][:1]
    sizes: dict[str, int] = {}
    for place, one in enumerate(every):
        fits = place < RUNS.revisions and sum(sizes.values()) + one.size <= RUNS.revisions_bytes
        if fits or place == 0 or one in good:
            sizes[one.content] = one.size
        else:
            store.put(_LIST, f"{project} {one.number}", None)
    for content in {one.content for one in every} - sizes.keys():
        store.put(_CONTENTS, f"{project} {content}", None)

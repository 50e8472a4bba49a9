"""What is to be done about one VM: rules are tried in order, and the first match decides. A rule answers with a change,
UNCHANGED, or None where it does not apply; it never acts, counts or limits.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Final, Literal

import msgspec

from mikrom_reconcile.core.model import observed as phases
from mikrom_reconcile.core.model.desired import DesiredVM, State
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.core.model.fields import counted_drift, field_changes, impact_of, is_row_of, recorded
from mikrom_reconcile.core.model.observed import Drift, ObservedVM, in_words
from mikrom_reconcile.core.model.plan import ChangeKind, FieldChange, VMChange
from mikrom_reconcile.core.planning.guards import as_recorded

UNCHANGED: Final = "unchanged"
Verdict = VMChange | Literal["unchanged"] | None


class DiffInput(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything that a rule may look at for one VM. `desired` is None for a VM that the specs do not want, `observed`
    None for one that no host reported. `name_conflict` is a row that is not ours and has the name. `host_unreachable`
    is why the VM's host gave no report, `possible_on` names unreachable hosts on which the VM may exist unknown to us.
    `duplicate_on` is the host of a newer VM of the name, `proven` whether that one is as was ordered. `eviction_reason`
    is why it may not stay where it is, `rejections` why no host can have it. `host_removed` says that its host left the
    inventory, `destroy` that everything has to go, `retry` that what was given up is tried again. `removed` is what a
    Refactor document says of it: whether to destroy it. `moved_to` is the name that it was to have.
    """

    desired: DesiredVM | None
    observed: ObservedVM | None
    name_conflict: ObservedVM | None = None
    host_unreachable: str = ""
    possible_on: tuple[str, ...] = ()
    duplicate_on: str = ""
    proven: bool = False
    eviction_reason: str = ""
    rejections: tuple[str, ...] = ()
    host_removed: bool = False
    destroy: bool = False
    retry: bool = False
    removed: bool | None = None
    moved_to: str = ""

    @property
    def want(self) -> DesiredVM:
        """The desired side, for rules after those that deal with its absence."""
        assert self.desired is not None, "rules above answer for a missing side"  # noqa: S101
        return self.desired

    @property
    def seen(self) -> ObservedVM:
        """The observed side, for rules after those that deal with its absence."""
        assert self.observed is not None, "rules above answer for a missing side"  # noqa: S101
        return self.observed

    @property
    def host(self) -> str:
        """Where the VM is, or else where it belongs."""
        return (self.observed or self.want).host

    @cached_property
    def fields(self) -> tuple[FieldChange, ...]:
        """What differs between the spec and what was last applied; nothing where their digests are equal."""
        if self.want.spec_digest == self.seen.spec_digest:
            return ()
        return field_changes(recorded_of(self.seen), recorded_of(self.want))

    @property
    def moved_from(self) -> str:
        """The name that the VM still has, if a Refactor document calls it otherwise."""
        return self.seen.name if self.observed and self.desired and self.seen.name != self.want.name else ""

    @property
    def drift(self) -> tuple[Drift, ...]:
        """The drift that the spec does not ignore."""
        return counted_drift(self.seen.drift, self.want)

    @property
    def drift_reasons(self) -> tuple[str, ...]:
        """The drift in words."""
        return tuple(f"drift: {item.path} is {item.actual}, recorded {item.recorded}" for item in self.drift)

    def change(
        self, kind: ChangeKind, *reasons: str, wanted: ChangeKind | None = None, fields: tuple[FieldChange, ...] = ()
    ) -> VMChange:
        """A change of this VM. A removal concerns the fleet that loses it, as it is recorded."""
        side = (self.observed if kind == "delete" else None) or self.desired or self.seen
        return VMChange(
            name=side.name,
            fleet=side.fleet,
            host=self.host,
            kind=kind,
            reasons=reasons,
            wanted=wanted,
            fields=fields,
            desired=self.desired,
            observed=self.observed,
        )


def recorded_of(vm: DesiredVM | ObservedVM) -> dict[str, Any]:
    """What is, or would be, recorded of the VM by path."""
    return recorded(fleet=vm.fleet, state=vm.state, spec=vm.spec, policy=vm.policy)


def judge(case: DiffInput) -> Verdict:
    """What the first matching rule says, under its id."""
    rule, verdict = first_match(case)
    if verdict == UNCHANGED:
        rule, verdict = "cannot-move", cannot_move(case) or UNCHANGED
    return msgspec.structs.replace(verdict, rule=rule) if isinstance(verdict, VMChange) else verdict


def first_match(case: DiffInput) -> tuple[str, Verdict]:
    """The id of the rule that decides, and what it says."""
    return next((rule, verdict) for rule, says in RULES.items() if (verdict := says(case)) is not None)


def unreachable_host(case: DiffInput) -> Verdict:
    """What cannot be read is unknown: neither made elsewhere nor deleted."""
    if case.host_unreachable and case.desired:
        return case.change("blocked", f"its host {case.desired.host} could not be read: {case.host_unreachable}")
    return None


def duplicate(case: DiffInput) -> Verdict:
    """Of two VMs of one name the one that was changed last stays; the other goes once that one is as was ordered."""
    if case.duplicate_on and not case.proven:
        reason = f"a newer VM of this name is on {case.duplicate_on}: this one stays until that one is well"
        return case.change("wait", reason, wanted="delete")
    return case.change("delete", f"a newer VM of this name is on {case.duplicate_on}") if case.duplicate_on else None


def host_removed(case: DiffInput) -> Verdict:
    """A host that left the inventory counts as unreachable until it is empty: leaving is no order to move or remove."""
    if case.host_removed and not case.destroy:
        host = case.host
        remedy = f"put it back with state: drain, or --assume-dead {host} once it is off for good"
        wanted: ChangeKind = "move" if case.desired else "delete"
        return case.change("blocked", f"its host {host} left the inventory: {remedy}", wanted=wanted)
    return None


def removed(case: DiffInput) -> Verdict:
    """A Refactor document says that it goes, or is let go; a delete that began goes on."""
    if case.removed is None or case.seen.phase == "deleting":
        return None
    if case.removed:
        return case.change("delete", "removed, destroy: true")
    return case.change("forget", "removed, destroy: false: it stays as it is, and nobody acts on it any more")


def destroy(case: DiffInput) -> Verdict:
    """A destroy takes everything that the specs speak for."""
    return case.change("delete", "destroy was asked for") if case.desired is None and case.destroy else None


def cannot_rename(case: DiffInput) -> Verdict:
    """A Refactor document calls it otherwise, and that name is taken."""
    if case.moved_to:
        reason = f"it was moved to {case.moved_to}, and there is one already: remove that entry, or one of the two"
    elif case.moved_from and case.name_conflict:
        reason = f"moved from {case.moved_from}, and its new name is somebody else's on {case.name_conflict.host}"
    else:
        return None
    return case.change("blocked", reason, wanted="rename")


def moved(case: DiffInput) -> Verdict:
    """A Refactor document calls it otherwise: it gets its name first, what else differs follows."""
    if not case.moved_from:
        return None
    seen, want, digest = case.seen, case.want, case.want.spec_digest
    if case.fields:
        digest = spec_digest(seen.project, seen.fleet, seen.state, seen.spec, seen.policy)
    desired = msgspec.structs.replace(as_recorded(seen, seen.state, seen.policy), name=want.name, spec_digest=digest)
    stem, dash, number = seen.name.rpartition("-")
    was = f"{stem}-*" if dash and want.name.endswith(dash + number) else seen.name  # the same for all of a fleet
    change = case.change("rename", f"moved from {was}: it goes on under its new name")
    return msgspec.structs.replace(change, desired=desired)


def imported(case: DiffInput) -> Verdict:
    """A Refactor document takes it over as it is; what differs follows."""
    if case.observed and case.observed.unmanaged:
        return case.change("import", "imported: it stays as it is, and is managed from now on")
    return None


def not_in_specs(case: DiffInput) -> Verdict:
    """No spec wants it any more."""
    return case.change("delete", "not in the specs") if case.desired is None else None


def absent(case: DiffInput) -> Verdict:
    """`state: absent` is a removal like any other."""
    if case.want.state == "absent":
        return case.change("delete", "state: absent") if case.observed else UNCHANGED
    return None


def name_conflict(case: DiffInput) -> Verdict:
    """A VM of another project, one that was let go, or whose record nobody can read, is never touched."""
    other = case.name_conflict
    if other is None or case.observed is not None:
        return None
    if other.phase == "unreadable":
        return case.change("blocked", f"it is on {other.host} and cannot be read: {other.last_error}")
    if other.unmanaged:
        reason = f"a VM of this name was let go on {other.host}: import: [{{to: {other.name}}}] takes it over"
        return case.change("blocked", reason)
    return case.change("blocked", f"the name belongs to project {other.project} on {other.host}")


def possible_duplicate(case: DiffInput) -> Verdict:
    """It may exist on an unreachable host that we know nothing of: making it now could double it."""
    if case.possible_on:
        reason = f"it may exist on {', '.join(case.possible_on)}, which cannot be read"
        return case.change("blocked", reason, wanted="create")
    return None


def unplaceable(case: DiffInput) -> Verdict:
    """No host has it, and none can."""
    if case.observed is None and case.rejections:
        return case.change("blocked", "no host can have it", *case.rejections, wanted="create")
    return None


def hand_started(case: DiffInput) -> Verdict:
    """A Refactor document says that somebody started it: it is taken over as it is, and where it is."""
    if case.observed or case.want.adopts is None:
        return None
    host, socket = case.want.adopts
    if host != case.want.host:
        reason = f"it runs on {host}, says import, and belongs on {case.want.host}: say host: {host} in its fleet"
        return case.change("blocked", reason, wanted="import")
    return case.change("import", f"what runs at {socket} stays as it is, and is managed from now on")


def missing(case: DiffInput) -> Verdict:
    """No host has it."""
    return case.change("create", "does not exist") if case.observed is None else None


def misplaced(case: DiffInput) -> Verdict:
    """It is where it may not be any more: it goes there now, and is made on its new host in the next pass."""
    if case.want.host != case.seen.host:
        return case.change("move", f"it belongs on {case.want.host}", f"{case.seen.host}: {case.eviction_reason}")
    return None


def interrupted_delete(case: DiffInput) -> Verdict:
    """A delete began and did not end; create finishes it first."""
    return case.change("create", "an earlier delete was interrupted") if case.seen.phase == "deleting" else None


def shrinking_drive(case: DiffInput) -> Verdict:
    """A drive never gets smaller: what lies behind its new end would be lost."""
    sizes = [field for field in case.fields if is_row_of("drives.*.size_mib", field.path)]
    smaller = [field for field in sizes if field.before and field.after and field.after < field.before]
    if not smaller:
        return None
    reasons = [f"{field.path} would shrink from {field.before} to {field.after}" for field in smaller]
    return case.change("blocked", *reasons, "write the old size, or a drive of another name")


def stopped(case: DiffInput) -> Verdict:
    """`state: stopped` or `suspended`, and a VMM lives or the record does not say so yet."""
    kinds: dict[State, ChangeKind] = {"stopped": "stop", "suspended": "suspend"}
    if (kind := kinds.get(state := case.want.state)) is None:
        return None
    will = f", and will boot anew: {why}" if state == "suspended" and (why := _misfit(case)) else ""
    if case.seen.phase in phases.HAS_VMM or case.seen.state != state:
        return case.change(kind, f"state: {state}, and it is {case.seen.phase}{will}", fields=case.fields)
    return case.change("update", f"spec changed{will}", fields=case.fields) if case.fields else UNCHANGED


def _misfit(case: DiffInput) -> str:
    """Why a guest does not go on from its memory, "" if it does or has none."""
    has_memory = case.seen.phase in phases.HAS_VMM or case.seen.phase == "suspended"
    is_another = any(field.impact in {"restart", "replace"} for field in case.fields)
    return "its memory is of another spec" if has_memory and is_another else ""


def crash_loop(case: DiffInput) -> Verdict:
    """Its host has given up bringing it back; a changed spec or --retry begins anew."""
    seen = case.seen
    if seen.phase != "crash_loop" or case.retry or case.fields:
        return None
    tries = f"{len(seen.restarts)} restarts within {seen.spec.restart.interval} did not keep it up"
    end = f", the last time: {seen.last_error}" if seen.last_error else ""
    return case.change("blocked", f"a crash loop: {tries}{end}; change its spec, or --retry", wanted="start")


def needs_replace(case: DiffInput) -> Verdict:
    """The spec differs in what its root disk is made from."""
    if any(field.impact == "replace" for field in case.fields):
        return case.change("replace", "spec changed", *case.drift_reasons, fields=case.fields)
    return None


def not_restarted(case: DiffInput) -> Verdict:
    """Its restart policy leaves it as it ended, but for one that was not up yet when its host went down."""
    seen, leaves = case.seen, phases.NOT_RESTARTED[case.want.spec.restart.policy]
    was_up = not (seen.phase == "rebooted" and seen.attempt)
    return UNCHANGED if seen.phase in leaves and was_up and not case.retry and not case.fields else None


def down(case: DiffInput) -> Verdict:
    """It should be up and no VMM lives."""
    seen = case.seen
    if seen.phase not in phases.HAS_VMM or seen.phase == "starting":
        reason = f"{in_words(seen.phase)}{f': {seen.last_error}' if seen.last_error else ''}"
        if seen.phase == "suspended" and (why := _misfit(case)):
            reason += f", and boots anew: {why}"
        return case.change("start", reason, fields=case.fields)
    return None


def unresponsive(case: DiffInput) -> Verdict:
    """A VMM lives and cannot be reached, or was told to stop."""
    if case.seen.phase not in phases.HEALTHY | phases.DEGRADED:
        return case.change("restart", f"it is {case.seen.phase}", fields=case.fields)
    return None


def needs_restart(case: DiffInput) -> Verdict:
    """The spec differs from what was applied in a field that only a restart changes."""
    if any(field.impact == "restart" for field in case.fields):
        return case.change("restart", "spec changed", *case.drift_reasons, fields=case.fields)
    return None


def drift(case: DiffInput) -> Verdict:
    """The VMM is not what its record says, in what only a restart mends."""
    if any(impact_of(item.path) in {"restart", "replace"} for item in case.drift):
        return case.change("restart", *case.drift_reasons, fields=case.fields)
    return None


def pause_or_resume(case: DiffInput) -> Verdict:
    """It runs and should be paused, or the other way round."""
    state, phase = case.want.state, case.seen.phase
    if phase in phases.SATISFIES[state] or (state == "running" and phase in phases.DEGRADED):
        return None
    kind: ChangeKind = "pause" if state == "paused" else "resume"
    return case.change(kind, f"state: {state}, and it is {phase}", fields=case.fields)


def needs_update(case: DiffInput) -> Verdict:
    """What differs can change while it runs, or only the record knows it."""
    reasons = [*(["spec changed"] if case.fields else []), *case.drift_reasons]
    return case.change("update", *reasons, fields=case.fields) if reasons else None


def unhealthy(case: DiffInput) -> Verdict:
    """It runs, and its guest does not do what its checks want: only time or a person can help."""
    seen = case.seen
    return case.change("wait", f"it is {seen.phase}: {seen.health}") if seen.phase in phases.DEGRADED else None


def up_to_date(case: DiffInput) -> Verdict:
    """Nothing to do."""
    del case
    return UNCHANGED


def cannot_move(case: DiffInput) -> Verdict:
    """It may not stay where it is, and no other host can have it: until one can, it is looked after where it is."""
    if case.rejections:
        return case.change("blocked", "it cannot leave this host", *case.rejections, wanted="move")
    return None


RULES: dict[str, Callable[[DiffInput], Verdict]] = {
    "unreachable-host": unreachable_host, "duplicate": duplicate, "host-removed": host_removed, "removed": removed,
    "destroy": destroy, "cannot-rename": cannot_rename, "moved": moved, "imported": imported,
    "not-in-specs": not_in_specs, "absent": absent, "name-conflict": name_conflict,
    "possible-duplicate": possible_duplicate, "unplaceable": unplaceable, "hand-started": hand_started,
    "missing": missing, "misplaced": misplaced, "interrupted-delete": interrupted_delete,
    "shrinking-drive": shrinking_drive, "stopped": stopped, "crash-loop": crash_loop, "needs-replace": needs_replace,
    "not-restarted": not_restarted, "down": down, "unresponsive": unresponsive, "needs-restart": needs_restart,
    "drift": drift, "pause-or-resume": pause_or_resume, "needs-update": needs_update, "unhealthy": unhealthy,
    "up-to-date": up_to_date, "cannot-move": cannot_move,
}  # fmt: skip
"""Each rule under its id, which stays when its function is renamed. The last looks at what others leave unchanged."""

STANDS_IN_THE_WAY = (
    "host-removed", "cannot-rename", "name-conflict", "unplaceable", "hand-started", "crash-loop", "cannot-move",
)  # fmt: skip
"""Rules whose `blocked` asks for somebody to do something; an unreachable host only has to answer again."""

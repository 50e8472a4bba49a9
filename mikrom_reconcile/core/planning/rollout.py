"""Rolling changes: who goes down now, who waits, when it halts. All follows from reports: who plans next goes on."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache, cached_property, partial
from itertools import chain, islice, repeat

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, Halt, Rollout, resolve_share, seconds_of
from mikrom_reconcile.core.model.observed import WANTS_VMM, Attempt, ObservedVM
from mikrom_reconcile.core.model.plan import Peak, Refusal, VMChange, group_by
from mikrom_reconcile.core.placement.scheduler import named
from mikrom_reconcile.core.planning import verdicts
from mikrom_reconcile.core.planning.context import Draft, PlanContext, with_kind
from mikrom_reconcile.core.specs.budgets import Allowance, allowance, largest
from mikrom_reconcile.times_and_sizes import RUNS, SPECS

REMEDIES = {
    "unreachable-host": "; mend that host, or --assume-dead if it is off for good",
    "name-conflict": "; free the name, or give the VM another",
}
"""What to do about VMs that are down and stay so; the reasons of other rules say it themselves."""


def roll_out(draft: Draft, context: PlanContext) -> Draft:
    """Lets as many VMs of a fleet be taken down as its share and its rollout allow; those that are down count, too."""
    asked: dict[str, list[VMChange]] = {name: [] for name in context.overrides.promote + context.overrides.abort}
    mine = asked | group_by(draft.changes, lambda change: change.fleet)
    if not mine:
        return draft
    all_of = group_by([*draft.changes, *draft.left_out], lambda change: change.fleet)
    up = (vm for vm in draft.desired if vm.fleet in mine and vm.state in WANTS_VMM)
    members = group_by(up, lambda vm: vm.fleet)
    fleets = {it: _Rollout(it, members.get(it, []), mine[it], all_of.get(it, []), context) for it in sorted(mine)}
    was_asked = any(query.before for query in context.given.queries.values())
    changes = [fleets[change.fleet].admit(change) for change in draft.changes]
    words = [word for fleet in fleets.values() for word in fleet.words()]
    draft = verdicts.with_words(replace(draft, changes=changes), words)
    return replace(
        draft,
        unmatched=draft.unmatched or verdicts.unheard(context.overrides, words, context.fleets),
        refusals=(*draft.refusals, *(refusal for fleet in fleets.values() for refusal in fleet.refusals())),
        peaks={name: peak for name, fleet in fleets.items() if (peak := fleet.peak())},
        retry_after_s=min(chain.from_iterable(fleet.retries for fleet in fleets.values()), default=None),
        ambiguous=not was_asked and any(fleet.goes_back for fleet in fleets.values()),
    )


def batches(names: list[str], rollout: Rollout, most: int) -> list[list[str]]:
    """The names in the batches of a rollout; none is larger than `most`. The first is of canaries, if there are any."""
    serial = rollout.serial if isinstance(rollout.serial, tuple) else (rollout.serial,)
    sizes = [min(most, resolve_share(size, len(names))) for size in serial or (most,)]
    first = [size] if (size := min(most, resolve_share(rollout.canary, len(names)))) else []
    rest, later = iter(names), chain(first, sizes, repeat(sizes[-1]))
    return list(iter(lambda: list(islice(rest, next(later))), []))


class _Rollout:
    def __init__(
        self, name: str, vms: list[DesiredVM], mine: list[VMChange], everything: list[VMChange], context: PlanContext
    ) -> None:
        self._fleet, self._view, self._tried = name, context.view, context.tried
        self._overrides, self._retry = context.overrides, context.overrides.retry
        rollout, budgets = (fleet.rollout, fleet.budgets) if (fleet := context.fleets.get(name)) else (None, ())
        self._described, self._rollout = rollout is not None, rollout or Rollout()
        self._may_go_back = self._rollout.auto_revert and verdicts.may_go_back(name, context)
        self._known = {change.name: change for change in everything if change.rule != "duplicate"}
        if self._rollout.unreachable == "skip":
            vms = [vm for vm in vms if not self._is_known_as(vm.name, "unreachable-host", "possible-duplicate")]
        self._wanted = {vm.name: vm for vm in vms}
        names = self._rollout.ordered(vms)
        self._size = len(names)
        unseen = (name for name in names if self._is_known_as(name, "unreachable-host"))
        self._unreachable = sorted({self._known[name].host for name in unseen})
        self._down = {vm.name for vm in vms if self._view.is_down(vm)}
        self._going = {change.name for change in mine if self._takes_down(change)}
        self._rolling = {change.name for change in mine if change.name in self._going and verdicts.rolls(change)}
        can_halt = names if self._described else []
        self._failed = {name for name in can_halt if self._has_failed(name)}
        self._stuck = self._failed | {name for name in can_halt if self._is_known_as(name, "crash-loop")}
        self._batches = batches(names, self._rollout, largest(budgets, self._size))
        self._batch_of = {name: number for number, batch in enumerate(self._batches) for name in batch}
        self._halts_creates, self._halts_rolling = self._too_many(self._failed), self._too_many(self._stuck)
        self._canaries = self._batches[0] if names and self._rollout.waits_for_promotion else []
        self._unpromoted = [name for name in self._canaries if name in self._view.canaries - self._rolling]
        self._allowance = cache(partial(allowance, budgets, self._size, context.now))
        self._stalled = self._has_stalled(context.thawed_s)
        self._at, self._before = self._position() if self._described and not self.goes_back else (None, "")
        self._used, self._stopped = len(self._down), False
        self._given_up: set[str] = set()
        self.retries: set[float] = set()  # in how many seconds a batch may be healthy, or a budget opens

    def _is_known_as(self, name: str, *rules: str) -> bool:
        return name in self._known and self._known[name].rule in rules

    def _takes_down(self, change: VMChange) -> bool:
        """A VM runs as it should, and would not for a while."""
        wanted = change.desired is not None and change.desired.state in WANTS_VMM
        return wanted and change.kind in {"restart", "replace", "move"} and change.name not in self._down

    def _has_failed(self, name: str) -> bool:
        """Bringing the VM to what is wanted now was tried, and is still to be done."""
        change = self._known.get(name)
        if self._retry and name not in self._tried:
            return False
        if self._trial_left_s(name) <= 0:
            return True
        if change is None or change.desired is None or change.kind not in {"create", "start", "restart", "replace"}:
            return False
        attempt = self._attempt(name)
        if attempt is None or attempt.repair or attempt.count == 0:
            return False
        return attempt.spec_digest == change.desired.spec_digest

    def _trial_left_s(self, name: str) -> float:
        """The time in which a VM that has the spec that is wanted now has to be healthy with it."""
        is_older = name in self._known and self._known[name].fields
        return math.inf if is_older else self._view.unproven.get(name, math.inf)

    def _has_stalled(self, thawed_s: float) -> bool:
        """Something is left to roll out, and for too long nothing changed or got healthy, though nothing held it."""
        limit, progress = self._rollout.progress_deadline, self._view.progress.get(self._fleet)
        left = self._rolling - self._stuck
        if limit is None or progress is None or not left or self._retry or self._unpromoted:
            return False
        idle_s = min(progress.age_s, thawed_s, self._allowance(frozenset({"spec_change"})).open_s)
        return self._begun > 0 and idle_s > seconds_of(limit)

    @cached_property
    def _older(self) -> dict[str, ObservedVM]:
        """The VMs that this rollout has still to come to, or that went back."""
        return {it.name: it.observed for it in self._known.values() if it.observed and verdicts.rolls(it)}

    def _begins_after(self) -> int:
        """The trials of this rollout have higher tokens than any VM that it has still to come to."""
        return max((row.trial.token for row in self._older.values() if row.trial), default=0)

    @cached_property
    def _begun(self) -> int:
        """The token of the run in which this rollout began, which all trials of it have; 0: none has."""
        progress = self._view.progress.get(self._fleet)
        return progress.token if progress and progress.token > self._begins_after() else 0

    @property
    def goes_back(self) -> bool:
        """Whether it has failed, and what it brought has to go back to what was before."""
        return self._may_go_back and self._is_over and self._begun > 0

    @cached_property
    def _reverts(self) -> dict[str, VMChange]:
        """What brings VMs back that this rollout brought; once all have come, only who never was healthy says so."""
        had = self._wanted.keys() & self._view.before.keys() & self._view.own.keys() - self._older.keys()
        rows = [self._view.own[name][0] for name in sorted(had)] if self.goes_back else []
        mine = {row.name: self._wanted[row.name] for row in rows if row.trial and row.trial.token == self._begun}
        is_incomplete = any(self._known[name].kind != "blocked" for name in self._older)
        if not (is_incomplete or self._halt or self._failed & mine.keys()):
            return {}
        return {change.name: change for change in verdicts.reverts(mine, self._view, self._why_halted())}

    @property
    def _outcome(self) -> str:
        """What has become of a rollout that is over."""
        return "reverted" if self._reverts else self._halt.outcome if self._halt else "halted"

    @cached_property
    def _halt(self) -> Halt | None:
        """What a record, or a person, says of why no VM is to be brought to what is wanted now."""
        if self._fleet in self._overrides.abort:
            return Halt(spec_digest="", why=verdicts.ABORTED)
        counted = self._wanted.keys() & self._view.halts.keys() & (self._tried if self._retry else self._wanted.keys())
        halts = ((self._view.halts[name], self._wanted[name]) for name in sorted(counted))
        said = (halt for halt, vm in halts if halt.spec_digest == vm.spec_digest)
        return max(said, key=lambda halt: halt.outcome == "reverted", default=None)

    def words(self) -> Iterator[VMChange]:
        """What a person says of this rollout, for the records of the VMs that it concerns."""
        names = self._batch_of.keys() - self._rolling
        rows = {name: self._view.own[name][0] for name in sorted(names) if name in self._view.own}
        yield from (self._paced(revert) if self._takes_down(revert) else revert for revert in self._reverts.values())
        if self._fleet in self._overrides.promote and not any(map(self._is_unhealthy, self._canaries)):
            yield from (verdicts.noted(rows[it], "promote", "it is promoted", canary=False) for it in self._unpromoted)
        if self._fleet in self._overrides.abort and self._rolling:
            begins_after = self._begins_after()
            for row in rows.values():
                if row.trial and row.trial.token > begins_after and not verdicts.has_ended(row):
                    halt = Halt(spec_digest=row.spec_digest, why=verdicts.ABORTED)
                    yield verdicts.noted(row, "abort", verdicts.ABORTED, canary=False, halt=halt)
        if self._retry:
            ended, none = filter(verdicts.has_ended, rows.values()), Halt(spec_digest="", why="")
            yield from (verdicts.noted(row, "retry", "its rollout goes on", halt=none) for row in ended)

    def _attempt(self, name: str) -> Attempt | None:
        observed = self._known[name].observed
        return observed.attempt if observed else self._view.attempts.get(name)

    def _too_many(self, failed: set[str]) -> int | None:
        for number, batch in enumerate(self._batches):
            if 100 * len(failed.intersection(batch)) > self._rollout.max_fail_percentage * len(batch):
                return number
        return None

    def _position(self) -> tuple[int | None, str]:
        """The batch that the rollout is at and why later ones wait for it; None when nothing is left to roll out."""
        left = self._rolling - self._stuck
        last = max((self._batch_of[name] for name in left), default=-1)
        for number, batch in enumerate(self._batches[: last + 1]):
            where = f"batch {number + 1} of {len(self._batches)}"
            if here := [name for name in batch if name in left]:
                return number, f"{where} comes first: {named(here, SPECS.named_vms, '; ')}"
            if unhealthy := [name for name in batch if name not in self._stuck and self._is_unhealthy(name)]:
                told = named(map(self._describe, unhealthy), SPECS.named_vms, "; ")
                return number, f"{where} is not healthy yet: {told}"
        return None, ""

    def _is_unhealthy(self, name: str) -> bool:
        """It is not up, or not for long enough; a VM whose name is somebody else's is not waited for."""
        return (name in self._down and not self._is_known_as(name, "name-conflict")) or name in self._view.maturing

    def _describe(self, name: str) -> str:
        """Why a VM is not healthy, and the remedy where nothing is done about it."""
        change = self._known.get(name)
        if name not in self._down:
            return f"{name} (has not been up for {self._rollout.min_healthy_time})"
        if change is None:
            return f"{name} (it is {self._view.own[name][0].phase})"
        return f"{name} ({'; '.join(change.reasons)}{REMEDIES.get(change.rule, '')})"

    def _limit(self) -> int:
        return max(map(len, self._batches), default=0) if self._at is None else len(self._batches[self._at])

    def admit(self, change: VMChange) -> VMChange:
        """The change, or what is left of it."""
        if self._known.get(change.name) is not change or change.name in self._reverts:
            return change
        if change.name in self._failed & self._going:  # it is still up, and would only keep the others waiting
            self._given_up.add(change.name)
            return with_kind(change, "blocked", "that has failed")
        waits_for_canary = change.name in self._followers and (self._unpromoted or self._to_change(self._canaries))
        has_failed = change.name in self._failed or self._halts_creates is not None or self._halt or waits_for_canary
        if has_failed and change.name in self._down and (repair := verdicts.as_it_was(change)):
            return repair
        if change.kind == "wait" and change.name in self._failed:
            self._stopped = self._stopped or self._halts_rolling is not None
            return replace(change, reasons=(*change.reasons, self._not_healthy_in_time))
        if self._is_halted(change):
            self._stopped = True
            return with_kind(change, "blocked", f"the rollout of this fleet is {self._outcome}")
        return self._on_trial(self._paced(change) if change.name in self._going else change)

    def _paced(self, change: VMChange) -> VMChange:
        """The change, which takes its VM down, or what it waits for."""
        if why := self._waits(change.name):
            return with_kind(change, "wait", why)
        allowed = self._allowance(_reasons_of(change))
        if allowed.most == 0:
            self.retries |= {allowed.opens_after_s} if allowed.opens_after_s else set()
            return with_kind(change, "wait", allowed.decides, held_by="budget")
        if self._used >= min(self._limit(), allowed.most):
            return with_kind(change, "wait", self._used_up_by(allowed))
        self._used += 1
        return change

    def _on_trial(self, change: VMChange) -> VMChange:
        """The change, with what its host has to know: since when this is rolled out, and whether others wait for it."""
        is_new = change.kind == "create" or (change.kind in {"start", "restart", "replace"} and change.fields)
        if change.desired is None or not is_new:
            return change
        canary = True if self._followers and change.name in self._canaries else None
        rollout = self._begun if self._rollout.auto_revert else None
        return replace(change, desired=replace(change.desired, canary=canary, rollout=rollout))

    @cached_property
    def _followers(self) -> set[str]:
        """The VMs that are to change after the canaries."""
        return self._to_change(self._batch_of.keys() - set(self._canaries)) if self._canaries else set()

    def _to_change(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if name in self._known and self._known[name].fields}

    def _is_halted(self, change: VMChange) -> bool:
        """Whether it would bring one more VM to a spec with which too many have failed."""
        if change.name in self._rolling:
            return self._is_over
        gave_up = change.observed is not None and change.observed.phase == "crash_loop"
        again = change.name in self._failed or (gave_up and change.name in self._down)
        return (self._halts_creates is not None or self._halt is not None) and (again or change.kind == "create")

    @property
    def _is_over(self) -> bool:
        return self._halts_rolling is not None or self._stalled or self._halt is not None

    def _waits(self, name: str) -> str:
        if name in self._rolling and self._unreachable:
            hosts = named(self._unreachable, SPECS.named_vms)
            return f"the rollout waits for {hosts}, which could not be read; rollout: {{unreachable: skip}} does not"
        if name in self._rolling and self._unpromoted and self._at != 0 and name not in self._canaries:
            told = named(self._unpromoted, SPECS.named_vms)
            return f"canary {told} is healthy and waits for `mikrom promote {self._fleet}`"
        if name in self._rolling and self._at is not None and self._batch_of[name] > self._at:
            self.retries |= self._batch_retries
            return self._before
        return ""

    def _used_up_by(self, allowed: Allowance) -> str:
        """What decides how many may be down, and what uses that up: a VM that was lost counts as one that crashed."""
        limit, batch = self._limit(), "serial" if self._at is None else f"batch {self._at + 1} of {len(self._batches)}"
        most, decides = (limit, batch) if limit < allowed.most else (allowed.most, allowed.decides)
        return f"at most {most} of {self._size} VMs are taken down at a time ({decides}){self._users}"

    @cached_property
    def _users(self) -> str:
        users: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._down):
            unseen = "unknown" if self._is_known_as(name, "unreachable-host", "possible-duplicate") else "not there yet"
            users["down already" if name in self._view.own else unseen].append(self._describe(name))
        return "".join(f"; {len(texts)} {how}: {named(texts, SPECS.named_vms, '; ')}" for how, texts in users.items())

    @cached_property
    def _batch_retries(self) -> set[float]:
        """When the batch that the rollout is at may be healthy by itself."""
        batch = self._batches[self._at or 0]
        times = [self._view.maturing[name] for name in batch if name in self._view.maturing]
        rows = (self._view.own.get(name, ()) for name in batch)
        times += [RUNS.booting_poll_s for row in rows if row and row[0].phase == "starting"]
        times += [max(RUNS.booting_poll_s, left_s) for left_s in map(self._trial_left_s, batch) if left_s < math.inf]
        return {max(times)} if times else set()

    def refusals(self) -> Iterator[Refusal]:
        """What was given up, and why the rollout is halted."""
        remedy = "change the spec, or --retry"
        for name in sorted(self._given_up):
            yield Refusal(fleet=self._fleet, vm=name, rule="halted", message=f"{self._failure(name)}; {remedy}")
        if self._stopped or self._reverts:
            to = "it goes back to what was healthy before" if self._outcome == "reverted" else "there is no way back"
            message = f"{self._why_halted()}; {f'{to}; ' if self._may_go_back else ''}{remedy}"
            yield Refusal(fleet=self._fleet, vm="", rule=self._outcome, message=message)

    def _why_halted(self) -> str:
        at = self._halts_rolling
        if self._halt:
            return self._halt.why
        if at is None:
            return f"nothing has got on within the progress_deadline of {self._rollout.progress_deadline}"
        failed = [name for name in self._batches[at] if name in self._stuck]
        allows = f"max_fail_percentage allows {self._rollout.max_fail_percentage:g} %"
        told = named(map(self._failure, failed), SPECS.named_vms, "; ")
        return f"{len(failed)} of {len(self._batches[at])} VMs of batch {at + 1} failed, {allows}: {told}"

    @property
    def _not_healthy_in_time(self) -> str:
        return f"not healthy within {self._rollout.healthy_deadline}"

    def _failure(self, name: str) -> str:
        change = self._known.get(name)
        if name in self._failed and self._trial_left_s(name) <= 0:
            seen = change.observed if change else None
            why = (seen.health or seen.last_error) if seen else ""
            return f"{name} ({self._not_healthy_in_time}{f': {why}' if why else ''})"
        attempt = self._attempt(name)
        if name in self._failed and attempt is not None:
            return f"{name} ({attempt.result.replace('_', ' ')}: {attempt.error})"
        return f"{name} ({'; '.join(self._known[name].reasons)})"

    def peak(self) -> Peak | None:
        """How many are down at a time, if any are taken down."""
        back = {name: change for name, change in self._reverts.items() if self._takes_down(change)}
        going = {name: self._known[name] for name in self._going - (self._rolling if self._is_over else set())} | back
        if not going:
            return None
        sizes = tuple(map(len, self._batches))
        allowed = max(self._allowance(_reasons_of(change)).most for change in going.values())
        down = min(max(sizes[self._at or 0 :]), allowed, len(self._down) + len(going))
        peak = Peak(down=down, size=self._size, pending=len(going))
        return peak if self._at is None else replace(peak, batch=self._at + 1, batches=sizes)


def _reasons_of(change: VMChange) -> frozenset[str]:
    """Which budgets a VM that is taken down counts for: a move may bring it to another spec, too."""
    if change.rule == "misplaced":
        return frozenset({"move", "spec_change"} if verdicts.rolls(change) else {"move"})
    return frozenset({"spec_change"} if verdicts.rolls(change) else {"drift"})

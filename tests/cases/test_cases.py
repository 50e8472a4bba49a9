"""Every case of this folder: specs and what the hosts have go in, the plan or the mistakes come out.

A case is one file, `<theme>/<what-it-shows>.yml`. To add one, copy its nearest neighbour, change it, and run
`make test ARGS="tests/cases -k what-it-shows"`; where the planner says something else, the failure shows what.

    specs: |                              # the text of fleet.yml; or several files, `name: text` for each
    request: {limit: hv1}                 # how the run was asked for (`Request` in tests/case.py)
    remembered: {vms: {web-000: hv1}, covers: [hv1]}    # what earlier runs wrote down; nothing unless given
    hosts:                                # what is really there, also on hosts that do not answer
      localhost:
        web-[000:001]: as wanted          # stands for web-000 and web-001, here and in `expect`
        web-002: {phase: crashed}         # as wanted but for this (`Row`)
    capacity: {hv1: {vcpu_count: 4, mem_size_mib: 1024}}    # what hosts say that they have; plenty unless given
    dark: [hv2]                           # hosts that do not answer
    attempts: {web-004: {count: 2}}       # of VMs that are not there because they could not be made
    frozen: {default: {by: ana}}          # projects that were frozen by command
    now: 2026-03-29T00:30:00Z             # noon of 2026-11-22, a Sunday, unless given
    expect:                               # all of the plan: what is not written must not be there (`Expect`)
      changes:
        start web-002 on localhost: it is crashed                 # `kind VM on host`: words of the explanation
        wait restart web-003 on localhost: [at most, 1 of 10]     # what it waits for
      unchanged: {localhost: 2}

Instead of a plan, `expect` may name the `problems` in the specs, an `error` of the run, or the expanded `vms`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.errors import MikromError, SpecError
from mikrom_reconcile.core.model.plan import VMChange
from mikrom_reconcile.core.placement.desired_state import render_all
from tests.case import HERE, Case, Words, flat, ranged, read_case

FILES = sorted(Path(__file__).parent.glob("*/*.yml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_case(file: Path) -> None:
    case = read_case(file)
    if case.expect.problems is not None:
        check_problems(case, case.expect.problems)
    elif case.expect.vms is not None:
        asked = {name: values or {} for name, values in ranged(case.expect.vms)}
        vms = {vm.name: flat(vm) | flat(vm.spec) for vm in render_all(case.read_specs(), here=HERE)}
        assert {name: {path: vm[path] for path in asked.get(name, {})} for name, vm in vms.items()} == asked
    elif case.expect.error is not None:
        with pytest.raises(MikromError, match=re.escape(case.expect.error)):
            case.decide()
    else:
        check_plan(case)


def check_problems(case: Case, expected: dict[str, Words]) -> None:
    with pytest.raises(SpecError) as raised:
        render_all(case.validated(), here=HERE)
    problems = raised.value.problems
    same(expected, {f"{item.path}:{item.line}:{item.column}": f"{item.message}; {item.hint}" for item in problems})
    assert list(problems) == sorted(problems, key=lambda item: (item.path, item.line, item.column))
    for item in problems:
        assert item.excerpt in ("", *case.texts[item.path].splitlines(), "")[item.line]


def check_plan(case: Case) -> None:
    decision, world = case.decide()
    plan, expect = decision.plan, case.expect
    same(expect.changes, {headline(change): told(change) for change in plan.changes})
    same(expect.refusals, {f"{item.rule} {item.vm or item.fleet}": item.message for item in plan.refusals})
    same({str(n): words for n, words in enumerate(expect.warnings)}, {str(n): w for n, w in enumerate(plan.warnings)})
    assert (plan.unchanged, decision.unmatched) == (expect.unchanged, expect.unmatched)
    assert set(plan.unreachable) == case.dark
    assert expect.remembers in (None, decision.placements)
    assert expect.peaks in (None, plan.peaks)
    assert decision.retry_after_s == expect.again_s
    assert [it.name for it in plan.changes if it.desired and it.desired.canary] == expect.canaries
    due = [headline(change) for change in plan.changes if change.kind not in {"wait", "blocked"}]
    deeds = [f"{action.verb} {action.vm} on {action.host}" for action in plan.actions]
    assert deeds == [line.replace("move ", "delete ").replace("replace ", "restart ") for line in due]
    assert all(world.act(action) == "done" for action in plan.actions), "a host would refuse this"


def headline(change: VMChange) -> str:
    held_back = change.wanted and change.kind in {"wait", "blocked"}
    kind = f"{change.kind} {change.wanted}" if held_back else change.kind
    return f"{kind} {change.name} on {change.host or 'no host'}"


def told(change: VMChange) -> str:
    fields = (f"{field.path} {field.before} -> {field.after}, {field.impact}" for field in change.fields)
    return "; ".join(filter(None, (change.rule, change.held_by, *change.reasons, *fields)))


def same(expected: dict[str, Words], found: dict[str, str]) -> None:
    """Fails with what was found beside what was expected: the same keys, each text with the expected words in it."""
    words = dict(ranged(expected))
    for key in words.keys() & found.keys():
        those = words[key]
        if all(word in found[key] for word in ([those] if isinstance(those, str) else those or ())):
            words[key] = found[key]
    assert found == words

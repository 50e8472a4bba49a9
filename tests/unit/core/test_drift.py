"""What scheduled runs order where drift is reported: VMs come back as they were left, not as the specs want them."""

from __future__ import annotations

from tests.case import Case, Expect, Request, Row

SPECS = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 1
  drift: {mode: report, heal: restarts, fields: {machine.smt: ignore}}
  template: {image: hello, boot_args: b}
"""


def test_a_dead_vm_is_started_with_the_spec_that_it_had() -> None:
    left = Row(phase="crashed", spec={"boot_args": "a"}, drift={})
    case = Case(
        specs=SPECS, expect=Expect(), request=Request(drift_mode="enforce"), hosts={"localhost": {"web-000": left}}
    )
    decision, world = case.decide()
    (action,) = decision.plan.actions
    assert action.desired is not None
    assert (action.verb, action.desired.spec.boot_args) == ("start", "a")
    assert action.desired.spec_digest == world.hosts["localhost"]["web-000"].spec_digest
    assert action.desired.ignore_drift == ("machine.smt",), "its host has to find it as ordered"

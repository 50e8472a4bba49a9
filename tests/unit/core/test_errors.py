from __future__ import annotations

from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.core.model.errors import ActionError, MikromError, PermanentError, SpecError, TemporaryError


def test_a_failed_action_says_which_vm_what_and_while_doing_what() -> None:
    error = TemporaryError("no memory is left", vm="web-000", step="starting the guest")
    assert (error.vm, error.step) == ("web-000", "starting the guest")
    assert str(error) == "web-000: no memory is left (while starting the guest)"
    assert isinstance(error, ActionError)
    assert not isinstance(error, PermanentError)


def test_wrong_specs_bring_all_their_problems() -> None:
    problem = SpecProblem(path="web.yml", line=1, column=1, pointer="", message="kind is missing")
    error = SpecError((problem, problem))
    assert error.problems == (problem, problem)
    assert str(error) == "2 problem(s) in the specs"
    assert isinstance(error, MikromError)

"""Ending greenlets from outside; in a process of its own, since patching cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
from gevent import monkey
monkey.patch_all()
import time
from mikrom_reconcile.core.model.errors import MikromError, PastDeadlineError
from mikrom_reconcile.dispatch import celery_patches as deadlines
began = time.monotonic()
"""


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("with deadlines.limited(0.1): time.sleep(9)", "not done after 0.1 s"),
        ("deadlines.stop()\nwith deadlines.limited(9): time.sleep(9)", "the host's worker is being stopped"),
        ("deadlines.stop()\ndeadlines.refuse_when_stopping()", "this worker is being stopped"),
    ],
)
def test_what_takes_too_long_is_ended_in_a_way_that_it_can_answer(program: str, said: str) -> None:
    indented = program.replace("\n", "\n    ")
    end = f"try:\n    {indented}\nexcept MikromError as error:\n    print(error, time.monotonic() - began < 8)\n"
    ended = subprocess.run([sys.executable, "-c", BEGIN + end], capture_output=True, text=True, check=True)
    assert said in ended.stdout
    assert ended.stdout.endswith("True\n")


def test_an_action_that_is_done_in_time_is_not_ended_later() -> None:
    program = "with deadlines.limited(0.1): time.sleep(0.01)\ndeadlines.stop()\ntime.sleep(0.3)\nprint('fine')"
    ended = subprocess.run([sys.executable, "-c", BEGIN + program], capture_output=True, text=True, check=True)
    assert ended.stdout == "fine\n"

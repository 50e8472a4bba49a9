"""The tutorial and the README as somebody who types them would find them: every command, and what it prints."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.docs.console import Ending, Step, differences, play, steps_of

ROOT = Path(__file__).parents[2]
DRIVERS = ["simulated", pytest.param("firecracker", marks=pytest.mark.kvm)]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def reader(own_environment: Path) -> Iterator[Path]:
    """An empty folder, with no microVM left behind."""
    folder = own_environment / "reader"
    folder.mkdir()
    yield folder
    left = vmms_below(own_environment / "run")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "the document leaves microVMs behind"


def vmms_below(run_dir: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"\0{run_dir}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def environment(driver: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "MIKROM_DRIVER": driver, "COLUMNS": "120"}


def what_make_apply_runs() -> str:
    """The recipe without its preparation, which has happened already where tests run."""
    recipe = re.search(
        r"^apply:.*\n\t@tools/bootstrap\.sh apply (bash -c '.*')$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert recipe is not None
    return recipe[1].replace("$(SPECS)", "specs/").replace("$(ARGS)", "").replace("$$", "$")


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_command_of_the_tutorial_does_what_it_says(driver: str, reader: Path) -> None:
    steps = steps_of((ROOT / "docs/tutorial.md").read_text())
    assert len(steps) > 20
    endings = play(steps, folder=reader, environment=environment(driver))
    assert list(differences(steps, endings)) == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_command_of_the_readme_does_what_it_says(driver: str, reader: Path) -> None:
    shutil.copytree(ROOT / "specs", reader / "specs")
    steps = steps_of((ROOT / "README.md").read_text())
    assert [step.command for step in steps].count("make apply") == 1
    make = f"make() {{ [[ $1 == apply ]] && {what_make_apply_runs()}; }}"
    endings = play(steps, folder=reader, environment=environment(driver), before=make)
    assert list(differences(steps, endings)) == []


def test_what_is_not_so_is_found() -> None:
    document = "```console\n$ true\n$ a\none\n…\nthree in 5 ms\n$ b\none\n$ c\n$ d\n$ echo $?\n2\n```\n"
    steps = steps_of(document)
    assert steps[1] == Step(3, "a", ["one", "…", "three in 5 ms"])
    printed = [([], 0), (["one", "", "two", "three in 1.2 s"], 0), (["two"], 0), (["said"], 0), ([], 2), (["3"], 0)]
    found = list(differences(steps, [Ending(lines, code) for lines, code in printed]))
    assert [difference.partition("\n")[0] for difference in found] == ["line 7: b", "line 9: c", "line 11: echo $?"]


def test_a_command_that_fails_is_no_surprise_only_where_its_exit_code_is_asked_for() -> None:
    steps = steps_of("```console\n$ false\n$ true\n```\n")
    assert len(list(differences(steps, [Ending([], 1), Ending([], 0)]))) == 1
    steps = steps_of("```console\n$ false\n$ echo $?\n1\n```\n")
    assert list(differences(steps, [Ending([], 1), Ending(["1"], 0)])) == []

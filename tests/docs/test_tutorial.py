"""The tutorial and the README as somebody who types them would find them: every command, and what it prints."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.docs.console import Ending, Step, differences, rewritten, steps_of
from tests.docs.documents import DOCUMENTS, read_and_do

DRIVERS = [
    pytest.param("simulated", marks=pytest.mark.soak),
    pytest.param("qemu", marks=[pytest.mark.needs("qemu-system-x86_64"), pytest.mark.soak]),
    pytest.param("firecracker", marks=pytest.mark.kvm),
]


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
            if f"{run_dir}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_does_what_it_says(document: str, driver: str, reader: Path) -> None:
    steps, endings = read_and_do(document, reader, driver)
    found = list(differences(steps, endings))
    assert len(steps) > 5
    assert not found, "\n\n".join([*found, "`python -m tests.docs.documents` shows anew what commands print"])


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


def test_what_is_not_so_any_more_is_shown_anew_and_nothing_else() -> None:
    document = "text\n```console\n$ cat <<'EOF'\na\nEOF\nold\n\n$ b\nin 5 ms\n$ c\nx\n…\n```\n"
    endings = [Ending(["a", "", "new", ""], 0), Ending(["in 7 ms"], 0), Ending(["y"], 0)]
    assert rewritten(document, steps_of(document), endings) == document.replace("old\n\n", "a\n\nnew\n")

"""Whatever bytes come from elsewhere, their parser has a value or its own error for them, soon: never a traceback.

`corpus/` has good ones of each kind, and `found/` those that once broke something: what a run finds is written below
the folder of temporary files, and belongs there. `make soak` tries a hundred times as many.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.mutate import mutated
from tests.fuzz.parsers import PARSERS, Parser

# what urllib could not connect it leaves to the garbage collection
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

HERE = Path(__file__).parent
SOAK_BATCHES = 100
LONGEST_S = 3.0
LEAD_NOWHERE = {"registry", "download"}
"""Some of their good ones lead to a server that is not there."""

BATCHES = [0, *(pytest.param(batch, marks=pytest.mark.soak) for batch in range(1, SOAK_BATCHES))]


def kept(folder: str, name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((HERE / folder / name).glob("*"))]


def fault_of(parser: Parser, content: bytes) -> str:
    began_s = time.process_time()
    try:
        parser.take(content)
    except parser.errors:
        pass
    except Exception as error:  # noqa: BLE001 - which is what is looked for
        return repr(error)
    spent_s = time.process_time() - began_s
    return f"it took {spent_s:.1f} s of CPU" if spent_s > LONGEST_S else ""


@pytest.mark.parametrize("name", PARSERS)
def test_what_is_good_is_taken_and_what_once_broke_something_does_not(name: str) -> None:
    for content in kept("corpus", name):
        with suppress(*PARSERS[name].errors if name in LEAD_NOWHERE else ()):
            PARSERS[name].take(content)
    for content in kept("found", name):
        assert fault_of(PARSERS[name], content) == ""


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("batch", BATCHES)
def test_spoilt_bytes_end_in_a_value_or_in_the_parsers_own_error(name: str, batch: int, tmp_path: Path) -> None:
    corpus, chance = kept("corpus", name) + kept("found", name), Random(f"{name} {batch}")
    for number in range(PARSERS[name].tries):
        content = mutated(corpus, chance)
        if fault := fault_of(PARSERS[name], content):
            file = tmp_path / hashlib.sha256(content).hexdigest()[:12]
            file.write_bytes(content)
            pytest.fail(f"try {number}: {fault}; cp {file} {HERE}/found/{name}/")

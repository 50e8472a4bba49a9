"""Types are made ready for msgspec before threads decode them: it ends the process where two meet one at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.fleet import ROOT

AT_ONCE = """
import importlib, pkgutil, sys, threading
from contextlib import suppress
import msgspec
from mikrom_reconcile.core import model
from mikrom_reconcile.core.model.encoding import ready
for module in pkgutil.iter_modules(model.__path__, f"{model.__name__}."):
    importlib.import_module(module.name)
sys.setswitchinterval(1e-6)
for kind in reversed(msgspec.Struct.__subclasses__()):  # those that hold others first
    last_first = kind.__struct_encode_fields__[::-1]  # what msgspec comes to last
    content = msgspec.json.encode(dict.fromkeys(last_first))
    together = threading.Barrier(8)
    def decode():
        together.wait()
        with suppress(msgspec.ValidationError):
            msgspec.json.decode(content, type=ready(kind))
    threads = [threading.Thread(target=decode) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""


def test_threads_that_meet_a_type_at_once_all_decode_it() -> None:
    done = subprocess.run([sys.executable, "-c", AT_ONCE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def types_given(path: Path) -> Iterator[tuple[int, ast.expr]]:
    """Where a type is given to msgspec, and which."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("msgspec."):
            named = [word.value for word in node.keywords if word.arg == "type"]
            first = {"msgspec.convert": 1, "msgspec.json.Decoder": 0, "msgspec.msgpack.Decoder": 0}
            place = first.get(ast.unparse(node.func))
            yield from ((node.lineno, kind) for kind in named)
            if place is not None and len(node.args) > place:
                yield node.lineno, node.args[place]


def test_every_type_that_is_given_to_msgspec_is_ready() -> None:
    package = ROOT / "mikrom_reconcile"
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in package.rglob("*.py")
        if path != package / "core/model/encoding.py"
        for line, kind in types_given(path)
        if not ast.unparse(kind).startswith("ready(")
    ]
    assert found == []

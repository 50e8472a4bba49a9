"""`mikrom` as a process of its own: what it is run on, and what it says. Its fixtures are in e2e/conftest.py."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonschema import Draft202012Validator

from mikrom_reconcile.__main__ import main

PROJECT = Path(__file__).parents[1]
SCHEMAS = json.loads((PROJECT / "tests" / "documents.schema.json").read_text())
WEB = """\
apiVersion: mikrom/v1
kind: Project
metadata: {name: demo}
---
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: %d
  template: {image: hello, machine: {mem_size_mib: 16}}
"""
Run = subprocess.CompletedProcess[str]
Mikrom = Callable[..., Run]
AS_A_PROGRAM = ("-m", "mikrom_reconcile")


def started(argv: Sequence[str], folder: Path) -> Run:
    return subprocess.run(
        argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )


def forked(words: Sequence[str], folder: Path) -> Run:
    """`mikrom` in a child of this process, which has imported most of it: a Python that begins costs more than that."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _become_mikrom(words, folder, out.fileno(), err.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        return Run(["mikrom", *words], code, out.read().decode(), err.read().decode())


def _become_mikrom(words: Sequence[str], folder: Path, out: int, err: int) -> NoReturn:
    """What Python would have set up, and nothing of pytest."""
    code = 1
    try:
        gc.freeze()  # what is garbage here has descriptors of the parent
        os.chdir(folder)
        for fd, source in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
            os.dup2(source, fd)
        sys.stdin, sys.stdout, sys.stderr = (
            open(fd, "w" if fd else "r", encoding="utf-8", closefd=False)  # noqa: SIM115 - a descriptor
            for fd in range(3)
        )
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        logging.root.handlers.clear()
        warnings.resetwarnings()
        random.seed()
        code = main(words)
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - whatever comes here would be a traceback
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def document(name: str, done: Run) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(done.stdout)
    Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMAS["$defs"]}).validate(loaded)
    return loaded


def names(mikrom: Mikrom) -> list[str]:
    return [vm["name"] for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]]


def write_specs(folder: Path, text: str) -> None:
    (folder / "specs" / "web.yml").write_text(text)

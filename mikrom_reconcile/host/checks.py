"""Checks of guests: whether a guest works, and not only its VMM. They are tried when the host is observed, no more
often than their interval says. Results are kept on disk, so that any process of this host goes on from there. So are
proofs that VMs have been healthy with the specs that they were brought to.
"""

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Check, seconds_of
from mikrom_reconcile.core.model.observed import HEALTHY, WANTS_VMM, ObservedVM, Phase, Progress, Trial, VMMFacts
from mikrom_reconcile.host.json_folder import JsonFolder
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.system.files import OddFileError
from mikrom_reconcile.system.time_limits import LimitedSocket, first_match
from mikrom_reconcile.times_and_sizes import CHECKS

Said = Callable[[int], bytes]  # what the guest printed since its boot, that many bytes at most


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a check so far. `passes` counts those in a row; `was_healthy` says that it once had enough."""

    check: Check
    at_s: float
    passes: int = 0
    was_healthy: bool = False
    why: str = ""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    started_s: float
    results: dict[str, Result] = {}


class Checks:
    """The checks of the VMs of one state folder."""

    def __init__(self, state_dir: Path) -> None:
        # nobody needs results after a power cut; many observers may write them at once
        self._folder = JsonFolder(state_dir / "checks", _Kept, durable=False, shared=True)

    def health(self, record: VMRecord, facts: VMMFacts, said: Said, *, give_up_at: float) -> tuple[Phase, str]:
        """The phase of a VM whose VMM runs, and which check says so and why. What is due is tried while there is time;
        else the last result counts.
        """
        started_s = time.monotonic() - facts.age_s
        kept = self._kept(record.vm, facts.pid or 0, started_s)
        results = {
            name: self._result(name, check, kept, record, said, give_up_at)
            for name, check in sorted(record.spec.checks.items())
        }
        if results != kept.results:
            with suppress(OSError):  # then its checks are only tried more often
                self._folder.write(record.vm, msgspec.structs.replace(kept, results=results))
        return judged(results)

    def _result(self, name: str, check: Check, kept: _Kept, record: VMRecord, said: Said, give_up_at: float) -> Result:
        last = kept.results.get(name)
        if last is not None and last.check != check:
            last = None
        now_s = time.monotonic()
        if last is not None and now_s - last.at_s < seconds_of(check.interval):
            return last
        if now_s > give_up_at:
            return last or Result(check=check, at_s=0.0, why="not tried yet")
        why = tried(check, record, said)
        passes = 0 if why else (last.passes if last else 0) + 1
        healthy = passes >= check.healthy_after or bool(last and last.was_healthy)
        return Result(check=check, at_s=now_s, passes=passes, was_healthy=healthy, why=why)

    def _kept(self, vm: str, pid: int, started_s: float) -> _Kept:
        with suppress(OddFileError):
            kept = self._folder.read(vm)
            if kept is not None and kept.pid == pid and abs(kept.started_s - started_s) < 1.0:
                return kept
        return _Kept(pid=pid, started_s=started_s)


def judged(results: dict[str, Result]) -> tuple[Phase, str]:
    """What the results mean together: "booting" until all checks have passed, "unhealthy" once one that had passed
    fails. The first by name that is not as it should be is named.
    """
    for name, result in sorted(results.items()):
        if not result.was_healthy:
            count = f"{result.passes} of {result.check.healthy_after} passes"
            return "booting", f"check {name}: {result.why or count}"
    for name, result in sorted(results.items()):
        if result.why:
            return "unhealthy", f"check {name}: {result.why}"
    return "running", ""


def tried(check: Check, record: VMRecord, said: Said) -> str:
    """Try it once; why it failed, "" if it passed."""
    limit_s = min(seconds_of(check.timeout), CHECKS.try_s)
    if check.type == "console":
        return _console(check, said, limit_s)
    address = record.addresses.get(min(record.spec.network_interfaces, default=""), "")
    if not address:
        return "the VM has no address"
    try:
        if check.type == "http":
            return _http(address, check, limit_s)
        with socket.create_connection((address, check.port or 0), timeout=limit_s):
            return ""
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return f"{address}:{check.port}: {reason or type(error).__name__}"


def _http(address: str, check: Check, timeout_s: float) -> str:
    import http.client  # noqa: PLC0415 - 20 ms that every start of `mikrom` would pay

    connection = http.client.HTTPConnection(address, check.port or 80, timeout=timeout_s)
    give_up_at = time.monotonic() + timeout_s
    try:
        connection.connect()
        connection.sock = LimitedSocket(connection.sock, give_up_at)
        connection.request("GET", check.path, headers={"User-Agent": "mikrom", "Connection": "close"})
        status = connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(str(error) or type(error).__name__) from error
    finally:
        connection.close()
    return "" if status < http.client.BAD_REQUEST else f"GET {check.path} answers {status}"


def _console(check: Check, said: Said, timeout_s: float) -> str:
    text = said(CHECKS.console_bytes)
    try:
        if check.deny and (found := first_match(check.deny, text, limit_s=timeout_s)) is not None:
            return f"the console says {found!r}"
        if check.expect and first_match(check.expect, text, limit_s=timeout_s) is None:
            return f"the console does not yet say {check.expect!r}"
    except OSError as error:
        return str(error)
    return ""


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """That a VM was seen healthy `at` a time with the spec of this trial."""

    trial: Trial
    at: datetime


class Trials:
    """The trials of the VMs of one state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = JsonFolder(state_dir / "proofs", Proof, shared=True)

    def proof_of(self, vm: str, trial: Trial) -> Proof | None:
        """The proof of this trial, if there is one."""
        with suppress(OddFileError):
            if (proof := self._folder.read(vm)) and replace(proof.trial, canary=trial.canary) == trial:
                return proof  # whether it was promoted since is no matter
        return None

    def judge(
        self,
        rows: Iterable[ObservedVM],
        limits_s: Mapping[str, float | None],
        maturing: Mapping[str, float],
        now: datetime,
    ) -> tuple[dict[str, float], dict[str, Progress]]:
        """The VMs that have proven nothing yet, with the seconds that are left; and the progress of each fleet."""
        unproven: dict[str, float] = {}
        progress: dict[str, Progress] = {}
        for row in rows:
            if (trial := row.trial) is None or row.fleet not in limits_s:
                continue
            proof = self.proof_of(row.name, trial)
            if proof is None and row.phase in HEALTHY and row.name not in maturing:
                proof = Proof(trial=trial, at=now)
                with suppress(OSError):  # then the next observer does it
                    self._folder.write(row.name, proof)
            limit_s = limits_s[row.fleet]
            if proof is None and limit_s is not None and row.state in WANTS_VMM:
                unproven[row.name] = limit_s - (now - trial.since).total_seconds()
            age_s = (now - (proof.at if proof else trial.since)).total_seconds()
            its = Progress(token=trial.token, age_s=age_s)
            progress[row.fleet] = progress.get(row.fleet, its).with_that_of(its)
        return unproven, progress

"""Whether VMs have proven the specs that they were brought to, by having been healthy with them. That is noted when it
is seen, so that a VM that fails later tells nothing against its spec.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from mikrom_reconcile.core.model.observed import HEALTHY, WANTS_VMM, ObservedVM, Progress, Trial
from mikrom_reconcile.host.json_folder import JsonFolder
from mikrom_reconcile.system.files import OddFileError


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

"""Approvals as OpenSSH signs and proves them, and whose count."""

import os
import re
import subprocess
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.plan import Approval, Order
from mikrom_reconcile.core.planning.approvals import loss_of, statement_of
from mikrom_reconcile.system.files import OddFileError, read_small
from mikrom_reconcile.times_and_sizes import RUNS, SPECS

_NAMESPACE = "mikrom"  # what is signed in it is no commit, and no commit is an approval


class Approvers(msgspec.Struct, frozen=True, kw_only=True):
    """The people in `file` (allowed_signers), of whom `needed` have to approve what takes data away; 0: nobody."""

    file: Path
    needed: int = 0

    def names(self) -> set[str]:
        """Who may approve."""
        with suppress(OSError, OddFileError, UnicodeDecodeError):
            lines = (read_small(self.file, max_bytes=SPECS.keys_bytes) or b"").decode().splitlines()
            lines = [line for line in lines if not re.search(rf'^\s*(#|$)|namespaces="(?![^"]*{_NAMESPACE})', line)]
            return {name for line in lines for name in line.split()[0].strip('"').split(",")}
        return set()

    def judge(self, losses: Collection[str], approvals: tuple[Approval, ...]) -> tuple[list[str], str]:
        """Who approved these losses, and why that is not enough, "" if it is."""
        approved: set[str] = set()
        faults = []
        for number, approval in enumerate(approvals[: RUNS.approvals], 1):
            try:
                approved.add(self._signer(approval, losses))
            except MikromError as error:
                faults.append(f"; approval {number}: {error}")
        if len(approved) >= self.needed:
            return sorted(approved), ""
        others = ", ".join(sorted(self.names() - approved)) or f"nobody else is in {self.file}"
        by = f" by {', '.join(sorted(approved))}" if approved else ""
        count = f"approvals needed to take data away: {self.needed}, given: {len(approved)}{by}"
        return sorted(approved), f"{count}; who can give them: {others}{''.join(faults)}"

    def objection(self, order: Order) -> str:
        """What a host has against an order that takes data away, "" if nothing."""
        approvals = order.approvals if loss_of(order.action) in order.losses else ()
        return self.judge(order.losses, approvals)[1] if self.needed else ""

    def _signer(self, approval: Approval, losses: Collection[str]) -> str:
        if not -RUNS.approval_ahead_s <= (datetime.now(UTC) - approval.at).total_seconds() <= RUNS.approval_s:
            raise MikromError(f"it is of {approval.at:%Y-%m-%d %H:%M %Z}, and holds for {RUNS.approval_s / 3600:g} h")
        with os.fdopen(os.memfd_create("signature"), "wb") as file:
            file.write(approval.signature.encode())
            file.flush()
            given = ("-f", str(self.file), "-s", f"/dev/fd/{file.fileno()}")
            try:
                name = _ssh_keygen("find-principals", *given, descriptor=file.fileno()).partition("\n")[0]
            except MikromError as error:
                raise MikromError(f"nobody who may approve signed it ({error})") from error
            text, words = statement_of(losses, approval.at), ("-n", _NAMESPACE, "-I", name)
            try:
                _ssh_keygen("verify", *given, *words, said=text, descriptor=file.fileno())
            except MikromError as error:
                raise MikromError(f"{name} signed another plan, or may not approve ({error})") from error
        return name


NOBODY = Approvers(file=Path("/dev/null"))  # is asked


def sign(losses: Collection[str], key: str) -> Approval:
    """An approval of these losses by a key; its passphrase is asked for on the terminal. Raises MikromError."""
    at = datetime.now(UTC).replace(microsecond=0)
    signature = _ssh_keygen("sign", "-q", "-f", key, "-n", _NAMESPACE, said=statement_of(losses, at), limit_s=None)
    return Approval(at=at, signature=signature)


def _ssh_keygen(
    deed: str, *words: str, said: str = "", descriptor: int | None = None, limit_s: float | None = RUNS.ssh_keygen_s
) -> str:
    """What it says. Raises MikromError."""
    kept = () if descriptor is None else (descriptor,)
    argv = ["ssh-keygen", "-Y", deed, *words]
    try:
        done = subprocess.run(
            argv, input=said, capture_output=True, text=True, pass_fds=kept, timeout=limit_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MikromError(f"ssh-keygen: {error}") from error
    if done.returncode:
        raise MikromError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return done.stdout

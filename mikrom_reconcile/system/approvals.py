"""Approvals as OpenSSH signs and proves them, and whose count."""

import os
import re
import subprocess
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.core.model.plan import Approval, Order
from mikrom_reconcile.core.planning.guards import loss_of, statement_of
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
        if abs((datetime.now(UTC) - approval.at).total_seconds()) > RUNS.approval_s:
            raise MikromError(f"it is of {approval.at:%Y-%m-%d %H:%M %Z}, and holds for {RUNS.approval_s / 3600:g} h")
        with os.fdopen(os.memfd_create("signature"), "wb", buffering=0) as file:
            file.write(approval.signature.encode())
            given, name = ("-f", str(self.file), "-s", f"/dev/fd/{file.fileno()}"), ""
            try:
                name = _ssh_keygen("find-principals", *given, kept=file.fileno()).partition("\n")[0]
                words, text = ("-n", _NAMESPACE, "-I", name), statement_of(losses, approval.at)
                _ssh_keygen("verify", *given, *words, said=text, kept=file.fileno())
            except MikromError as error:
                why = f"{name} signed another plan, or may not" if name else "nobody signed it who may"
                raise MikromError(f"{why} approve ({error})") from error
        return name


NOBODY = Approvers(file=Path("/dev/null"))  # is asked


def sign(losses: Collection[str], key: str) -> Approval:
    """An approval of these losses by a key; its passphrase is asked for on the terminal. Raises MikromError."""
    at = datetime.now(UTC).replace(microsecond=0)
    signature = _ssh_keygen("sign", "-q", "-f", key, "-n", _NAMESPACE, said=statement_of(losses, at), limit_s=None)
    return Approval(at=at, signature=signature)


def _ssh_keygen(*words: str, said: str = "", kept: int = 0, limit_s: float | None = RUNS.ssh_keygen_s) -> str:
    """What it says; it keeps a descriptor open. Raises MikromError."""
    argv = ["ssh-keygen", "-Y", *words]
    given: dict[str, Any] = {"input": said, "capture_output": True, "text": True, "pass_fds": (kept,) if kept else ()}
    try:
        return str(subprocess.run(argv, timeout=limit_s, check=True, **given).stdout)
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        raise MikromError(lines[-1]) from error

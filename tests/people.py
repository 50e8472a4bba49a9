"""People with SSH keys, and the file of those who may approve."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mikrom_reconcile.core.model.plan import Approval
from mikrom_reconcile.core.planning.guards import statement_of
from mikrom_reconcile.system.approvals import Approvers


class People:
    """Ana, Bo and Cy may approve, Ana with two keys; Dan may sign commits only; Mallory may nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "approvers"
        names = {"ana": "", "ana-2": "", "bo": 'namespaces="git,mikrom" ', "cy": "", "dan": 'namespaces="git" '}
        lines = [f"{name.partition('-')[0]} {rest}{self.public(name)}" for name, rest in names.items()]
        self.file.write_text("# who may approve\n\n" + "".join(lines))

    def key(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        return path

    def public(self, name: str) -> str:
        return self.key(name).with_suffix(".pub").read_text()

    def approvers(self, needed: int) -> Approvers:
        return Approvers(file=self.file, needed=needed)

    def approval(self, name: str, losses: Collection[str], *, age: timedelta = timedelta()) -> Approval:
        """As `mikrom approve` makes it, but as old as it is to be."""
        at = datetime.now(UTC).replace(microsecond=0) - age
        argv = ["ssh-keygen", "-q", "-Y", "sign", "-n", "mikrom", "-f", str(self.key(name))]
        done = subprocess.run(argv, input=statement_of(losses, at), capture_output=True, text=True, check=True)
        return Approval(at=at, signature=done.stdout)

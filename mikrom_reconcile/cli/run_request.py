"""From options and settings to the request that an engine is given."""

from __future__ import annotations

import getpass
import os
import socket

from mikrom_reconcile.core.model.desired import Share
from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.settings import Settings


def request_for(
    command: str,
    tree: SourceTree,
    settings: Settings,
    *,
    destroy: bool = False,
    prune_max: Share | None = None,
    timeout_s: float | None = None,
    forks: int | None = None,
) -> RunRequest:
    """The request of one command; what an option left open is as the settings say."""
    return RunRequest(
        run_id=os.urandom(6).hex(),
        origin=f"{command} by {_user()}@{socket.gethostname()}",
        tree=tree,
        destroy=destroy,
        prune_max=prune_max,
        forks=forks or settings.forks,
        timeout_s=timeout_s or settings.timeout_s,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        return "unknown"

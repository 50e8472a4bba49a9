"""From options and settings to the request that an engine is given."""

from __future__ import annotations

import getpass
import os
from typing import Any

from mikrom_reconcile.core.model.run import RunRequest
from mikrom_reconcile.core.model.specs import SourceTree
from mikrom_reconcile.settings import Settings


def request_for(command: str, tree: SourceTree, settings: Settings, **asked: Any) -> RunRequest:
    """The request of one command. `asked` are fields of it; what is None there is as the settings say."""
    given = {name: value for name, value in asked.items() if value is not None}
    return RunRequest(
        **{"forks": settings.forks, "timeout_s": settings.timeout_s, **new_run(command), **given, "tree": tree}
    )


def new_run(command: str) -> dict[str, str]:
    """The fields that tell one run from another."""
    return {"run_id": os.urandom(6).hex(), "origin": f"{command} by {_user()}@{os.uname().nodename}"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        return "unknown"

"""NAT of bridges: a table of nftables for each, read, compared and replaced as a whole by the program `nft`."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.system.netlink import rules_generation
from mikrom_reconcile.times_and_sizes import NETWORKS

PREFIX = "mkb"
"""How the names of bridges begin, and so those of their tables."""

HOOK = "type nat hook postrouting priority srcnat; policy accept;"
"""The line without which the others do nothing."""

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_PRIORITY = re.compile(r"priority [^;]+;")  # versions of nft differ in how they write it
_TABLE = re.compile(rf"^table ip ({PREFIX}\w+) {{\n(.*?)^}}", re.MULTILINE | re.DOTALL)
_STEP = "making its links"


def nat_of(bridge: str, cidr: str) -> frozenset[str]:
    """The lines by which packets leave the network under the host's own address."""
    return frozenset({HOOK, f'ip saddr {cidr} oifname != "{bridge}" masquerade'})


class Rules:
    """The tables of this network namespace, read again when the kernel's ruleset has changed."""

    def __init__(self) -> None:
        self._seen: tuple[int | None, dict[str, frozenset[str]] | None] = (None, None)
        self._again_at = 0.0

    def of(self, bridge: str) -> frozenset[str] | None:
        """The lines of the bridge's table, none where this host does not forward; None: nobody can say."""
        generation, (seen_at, tables) = rules_generation(), self._seen
        if generation is None or generation != seen_at or (tables is None and time.monotonic() > self._again_at):
            tables = _tables()
            self._seen, self._again_at = (generation, tables), time.monotonic() + NETWORKS.nft_retry_s
        if tables is None:
            return None
        return tables.get(bridge, frozenset()) if _forwards() else frozenset()

    def replace(self, vm: str, bridge: str, lines: Iterable[str]) -> None:
        """Have the bridge's table say just this. Raises PermanentError, TemporaryError."""
        body = "\n".join(sorted(lines, key=lambda line: (line != HOOK, line)))
        table = f"table ip {bridge} {{\nchain postrouting {{\n{body}\n}}\n}}\n" if body else ""
        _change(vm, f"table ip {bridge} {{}}\ndelete table ip {bridge}\n{table}")
        try:
            if table and not _forwards():
                _FORWARD.write_text("1")
        except OSError as error:
            message = f"cannot let this host forward packets ({_FORWARD}: {error.strerror}), which nat needs"
            raise PermanentError(message, vm=vm, step=_STEP) from error


def _forwards() -> bool:
    return _FORWARD.read_text().strip() != "0"


def _tables() -> dict[str, frozenset[str]] | None:
    try:
        done = _nft("list", "ruleset", "ip")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else {name: _lines(body) for name, body in _TABLE.findall(done.stdout)}


def _lines(body: str) -> frozenset[str]:
    lines = (_PRIORITY.sub("priority srcnat;", line.strip()) for line in body.splitlines())
    return frozenset(line for line in lines if line and not line.endswith(("{", "}")))


def _nft(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    command, timeout_s = ("nft", *words), NETWORKS.nft_s
    return subprocess.run(
        command, input=script, text=True, errors="replace", capture_output=True, timeout=timeout_s, check=False
    )


def _change(vm: str, script: str) -> None:
    try:
        done = _nft("-f", "-", script=script)
    except FileNotFoundError:
        message = "nat needs the program nft: install nftables, or leave nat out of the network"
        raise PermanentError(message, vm=vm, step=_STEP) from None
    except subprocess.TimeoutExpired as error:
        raise TemporaryError(f"nft gave no answer within {NETWORKS.nft_s:g} s", vm=vm, step=_STEP) from error
    if done.returncode:
        raise PermanentError(f"nft refused: {done.stderr.strip()[:300]}", vm=vm, step=_STEP)

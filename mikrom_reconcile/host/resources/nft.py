"""The tables of bridges, read, compared and changed by the program `nft`. What they are to say: `rules.py`."""

import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from mikrom_reconcile.core.model.errors import PermanentError, TemporaryError
from mikrom_reconcile.host.resources.rules import PREFIX, SETS, tap_of
from mikrom_reconcile.system.netlink import rules_generation
from mikrom_reconcile.times_and_sizes import NETWORKS

ByTap = Mapping[str, frozenset[str]]  # the rules of a bridge by the tap that they are of; under "" what all share

_FORWARD = "/proc/sys/net/ipv4/ip_forward"
_LOOPBACK = "/proc/sys/net/ipv4/conf/{}/route_localnet"
_NEEDS = {"ip chain nat_": _FORWARD, "ip chain publish_in": _FORWARD, "ip chain publish_out": _LOOPBACK}
"""What rules need to be switched on in the kernel: without it they count as missing."""

_TABLE = re.compile(rf"^table (bridge|ip) ({PREFIX}\w+) {{\n(.*?)^}}", re.MULTILINE | re.DOTALL)
_HOME = re.compile(r"^\t(chain|set|map) (\w+) {\n(.*?)^\t}", re.MULTILINE | re.DOTALL)
_AFTER_KEY = re.compile("\n| comment | : ")


class Rules:
    """The tables of this network namespace, read again when the kernel's ruleset has changed."""

    def __init__(self) -> None:
        self._seen: tuple[int | None, dict[str, ByTap] | None] = (None, None)
        self._again_at = 0.0

    def of(self, bridge: str) -> ByTap | None:
        """The rules of a bridge, without those for which something else is missing; None: nobody can say."""
        tables = self._tables()
        if tables is None:
            return None
        found = tables.get(bridge, {})
        lame = [rule for rule in found.get("", ()) for need in _needs(rule, bridge) if not _is_on(need)]
        return {**found, "": found[""].difference(lame)} if lame else found

    def with_tap(self, tap: str) -> list[str]:
        """The bridges that have rules of this tap."""
        return [name for name, rules in (self._tables() or {}).items() if tap in rules]

    def _tables(self) -> dict[str, ByTap] | None:
        generation, (seen_at, tables) = rules_generation(), self._seen
        if generation is None or generation != seen_at or (tables is None and time.monotonic() > self._again_at):
            with suppress(PermanentError, TemporaryError):
                tables = None
                tables = _listed()
            self._seen, self._again_at = (generation, tables), time.monotonic() + NETWORKS.nft_retry_s
        return tables

    def change(self, bridge: str, *, add: Iterable[str], take: Iterable[str]) -> None:
        """Add rules to a bridge, and take others away. Raises PermanentError, TemporaryError."""
        self._tables()
        generation, seen = self._seen  # of one moment: others change other bridges
        tables = _listed() if seen is None else seen
        after = _changed(tables.get(bridge, {}), add, take)
        if any(" chain " in rule for rule in (*add, *take)) or not _are_changed(bridge, add, take):
            _nft(_tables_of(bridge, [*frozenset[str]().union(*after.values()), *add]))
        elif generation is not None and rules_generation() == generation + 1:  # nobody else has changed anything
            self._seen = (generation + 1, {**tables, bridge: after})
        _switch(bridge, after.get("", ()))


def _changed(rules: ByTap, add: Iterable[str], take: Iterable[str]) -> ByTap:
    after = dict(rules)
    for rule in take:
        after[tap_of(rule)] = after.get(tap_of(rule), frozenset()) - {rule}
    for rule in add:
        after[tap_of(rule)] = after.get(tap_of(rule), frozenset()) | {rule}
    return {tap: rules for tap, rules in after.items() if rules}


def _key(rule: str) -> str:
    """What can be there only once: a chain of its name, or an element of its key."""
    return _AFTER_KEY.split(rule, 1)[0]


def _are_changed(bridge: str, add: Iterable[str], take: Iterable[str]) -> bool:
    """Change elements alone, if nothing that is left is in the way."""
    words = [("delete", *_key(rule).split(" ", 2)) for rule in take] + [("add", *rule.split(" ", 2)) for rule in add]
    lines = (f"{verb} element {family} {bridge} {home} {{ {text} }}" for verb, family, home, text in words)
    with suppress(PermanentError):
        _nft("\n".join(lines))
        return True
    return False


def _tables_of(bridge: str, rules: list[str]) -> str:
    """What replaces the tables of a bridge as a whole, at one moment; none are left where there are no rules. Of two
    rules with one key the last counts, and no element leads to a chain that nobody wants any more.
    """
    last = {_key(rule): rule for rule in rules}
    kept = sorted(rule for rule in last.values() if " : goto " not in rule or f"ip chain {rule.split()[-1]}" in last)
    lines: list[str] = []
    for family in ("bridge", "ip"):
        own = [rule for rule in kept if rule.startswith(f"{family} ")]
        lines += [f"table {family} {bridge} {{}}", f"delete table {family} {bridge}"]
        lines += [f"table {family} {bridge} {{", *_homes(family, own), "}"] if own else []
    return "\n".join((*lines, ""))


def _homes(family: str, rules: list[str]) -> Iterator[str]:
    for home, begin in SETS.items():
        elements = ", ".join(rule.removeprefix(f"{home} ") for rule in rules if rule.startswith(f"{home} "))
        if home.startswith(f"{family} "):
            yield f"{begin} {elements and f'elements = {{ {elements} }}'}\n}}"
    for head, _, body in (rule.partition("\n") for rule in rules if rule.startswith(f"{family} chain ")):
        yield f"{head.removeprefix(f'{family} ')} {{\n{body}\n}}"


def _listed() -> dict[str, ByTap]:
    """The rules of each bridge of ours. Raises PermanentError, TemporaryError."""
    tables: dict[str, ByTap] = {}
    for family, bridge, body in _TABLE.findall(_nft("list ruleset bridge\nlist ruleset ip\n")):
        tables[bridge] = _changed(tables.get(bridge, {}), _rules_in(family, body), ())
    return tables


def _rules_in(family: str, body: str) -> Iterator[str]:
    for kind, name, content in _HOME.findall(body):
        if kind == "chain":
            yield "\n".join((f"{family} chain {name}", *filter(None, map(str.strip, content.splitlines()))))
        else:
            elements = content.partition("elements = {")[2].rpartition("}")[0]
            yield from (f"{family} {name} {' '.join(each.split())}" for each in elements.split(",") if each.strip())


def _needs(rule: str, bridge: str) -> Iterator[Path]:
    return (Path(path.format(bridge)) for head, path in _NEEDS.items() if rule.startswith(head))


def _is_on(switch: Path) -> bool:
    return switch.exists() and switch.read_text().strip() != "0"


def _switch(bridge: str, rules: Iterable[str]) -> None:
    """Have the kernel do what rules need, and lead nothing to loopback without need."""
    needs, loopback = {need for rule in rules for need in _needs(rule, bridge)}, Path(_LOOPBACK.format(bridge))
    try:
        for need in needs | {loopback}:
            if _is_on(need) != (need in needs):
                need.write_text("1" if need in needs else "0")
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise PermanentError(f"cannot let this host forward packets ({why}): nat and publish need it") from error


def _nft(script: str) -> str:
    """What nft answers to a script. Raises PermanentError, TemporaryError."""
    command, timeout_s = ("nft", "-y", "-f", "-"), NETWORKS.nft_s  # priorities as numbers: releases differ in words
    try:
        done = subprocess.run(
            command, input=script, text=True, errors="replace", capture_output=True, timeout=timeout_s, check=False
        )
    except OSError as error:
        remedy = "install nftables, or give the network guard: false and no other rules"
        raise PermanentError(f"its network needs the program nft ({error.strerror}): {remedy}") from None
    except subprocess.TimeoutExpired as error:
        raise TemporaryError(f"nft gave no answer within {timeout_s:g} s") from error
    if done.returncode:
        raise PermanentError(f"nft refused: {done.stderr.strip()[:300]}")
    return done.stdout

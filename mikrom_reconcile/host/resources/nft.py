"""The tables of bridges, read, compared and changed by the program `nft`. What they are to say: `rules.py`."""

from __future__ import annotations

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

ByTap = Mapping[str, frozenset[str]]
"""The rules of a bridge by the tap that they are of; under "" what all share."""

_FORWARD = "/proc/sys/net/ipv4/ip_forward"
_LOOPBACK = "/proc/sys/net/ipv4/conf/{}/route_localnet"
_NEEDS = {"ip chain nat_": _FORWARD, "ip chain publish_in": _FORWARD, "ip chain publish_out": _LOOPBACK}
"""What rules need to be switched on in the kernel: without it they count as missing."""

_TABLE = re.compile(rf"^table (bridge|ip) ({PREFIX}\w+) {{\n(.*?)^}}", re.MULTILINE | re.DOTALL)
_HOME = re.compile(r"^\t(chain|set|map) (\w+) {\n(.*?)^\t}", re.MULTILINE | re.DOTALL)
_AFTER_KEY = re.compile(" comment | : ")
_STEP = "making its links"


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

    def elsewhere(self, tap: str, bridge: str) -> list[str]:
        """Other bridges that have rules of this tap: it was there before."""
        return [name for name, rules in (self._tables() or {}).items() if tap in rules and name != bridge]

    def _tables(self) -> dict[str, ByTap] | None:
        generation, (seen_at, tables) = rules_generation(), self._seen
        if generation is None or generation != seen_at or (tables is None and time.monotonic() > self._again_at):
            tables = _listed()
            self._seen, self._again_at = (generation, tables), time.monotonic() + NETWORKS.nft_retry_s
        return tables

    def change(self, vm: str, bridge: str, *, add: Iterable[str], take: Iterable[str]) -> None:
        """Add rules to a bridge, and take others away. Raises PermanentError, TemporaryError."""
        tables, generation = self._tables(), self._seen[0]
        if tables is None:
            _run(vm, "-y", "list", "tables")
            raise TemporaryError("the rules of nftables cannot be read", vm=vm, step=_STEP)
        after = _changed(tables.get(bridge, {}), add, take)
        elements = [*_element_changes(bridge, add, take)]
        if None not in elements and _is_done(vm, "\n".join(filter(None, elements))):
            if generation is not None and rules_generation() == generation + 1:  # nobody else has changed anything
                self._seen = (generation + 1, {**tables, bridge: after})
        else:
            own_last = (*(rule for rules in after.values() for rule in rules), *add)
            _run(vm, "-f", "-", script=_script(bridge, _possible(own_last)))
        _switch_on(vm, bridge, after.get("", ()))


def _changed(rules: ByTap, add: Iterable[str], take: Iterable[str]) -> ByTap:
    after = dict(rules)
    for rule in take:
        after[tap_of(rule)] = after[tap_of(rule)] - {rule}
    for rule in add:
        after[tap_of(rule)] = after.get(tap_of(rule), frozenset()) | {rule}
    return {tap: rules for tap, rules in after.items() if rules}


def _key(rule: str) -> str:
    """What can be there only once: a chain of its name, or an element of its key."""
    return _AFTER_KEY.split(rule.partition("\n")[0])[0]


def _possible(rules: Iterable[str]) -> list[str]:
    """The last of each key, and no element that leads to a chain which nobody wants any more."""
    last = {_key(rule): rule for rule in rules}
    return [rule for rule in last.values() if " : goto " not in rule or f"ip chain {rule.split()[-1]}" in last]


def _element_changes(bridge: str, add: Iterable[str], take: Iterable[str]) -> Iterator[str | None]:
    """The commands that change elements; None for a chain, with which the tables are made anew."""
    for verb, rules in (("delete", map(_key, take)), ("add", add)):
        for rule in rules:
            family, home, element = rule.split(" ", 2)
            yield None if home == "chain" else f"{verb} element {family} {bridge} {home} {{ {element} }}"


def _script(bridge: str, rules: list[str]) -> str:
    """What replaces the tables of a bridge as a whole, at one moment; none are left where there are no rules."""
    lines: list[str] = []
    for family in ("bridge", "ip"):
        of_family = sorted(rule for rule in rules if rule.startswith(f"{family} "))
        lines += [f"table {family} {bridge} {{}}", f"delete table {family} {bridge}"]
        lines += [f"table {family} {bridge} {{", *_homes(family, of_family), "}"] if of_family else []
    return "\n".join((*lines, ""))


def _homes(family: str, rules: list[str]) -> Iterator[str]:
    for home, declaration in SETS.items():
        elements = ", ".join(rule.removeprefix(f"{home} ") for rule in rules if rule.startswith(f"{home} "))
        if home.startswith(f"{family} "):
            yield declaration + (f" elements = {{ {elements} }}" if elements else "") + "\n}"
    for rule in rules:
        if rule.startswith(f"{family} chain "):
            head, _, body = rule.removeprefix(f"{family} ").partition("\n")
            yield f"{head} {{\n{body}\n}}"


def _is_done(vm: str, script: str) -> bool:
    with suppress(PermanentError):
        _run(vm, "-f", "-", script=script)
        return True
    return False


def _listed() -> dict[str, ByTap] | None:
    """The rules of each bridge of ours; None where nft cannot say."""
    try:
        done = _nft("-y", "-f", "-", script="list ruleset bridge\nlist ruleset ip\n")
    except (OSError, subprocess.TimeoutExpired):
        return None
    tables: dict[str, ByTap] = {}
    for family, bridge, body in _TABLE.findall(done.stdout):
        tables[bridge] = _changed(tables.get(bridge, {}), _rules_in(family, body), ())
    return None if done.returncode else tables


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


def _switch_on(vm: str, bridge: str, rules: Iterable[str]) -> None:
    for need in {need for rule in rules for need in _needs(rule, bridge)}:
        try:
            if not _is_on(need):
                need.write_text("1")
        except OSError as error:
            message = f"cannot let this host forward packets ({need}: {error.strerror}), which nat and publish need"
            raise PermanentError(message, vm=vm, step=_STEP) from error


def _nft(*words: str, script: str = "") -> subprocess.CompletedProcess[str]:
    command, timeout_s = ("nft", *words), NETWORKS.nft_s
    return subprocess.run(
        command, input=script, text=True, errors="replace", capture_output=True, timeout=timeout_s, check=False
    )


def _run(vm: str, *words: str, script: str = "") -> None:
    try:
        done = _nft(*words, script=script)
    except FileNotFoundError:
        message = (
            "its network needs the program nft: install nftables, or give the network guard: false and no other rules"
        )
        raise PermanentError(message, vm=vm, step=_STEP) from None
    except subprocess.TimeoutExpired as error:
        raise TemporaryError(f"nft gave no answer within {NETWORKS.nft_s:g} s", vm=vm, step=_STEP) from error
    if done.returncode:
        raise PermanentError(f"nft refused: {done.stderr.strip()[:300]}", vm=vm, step=_STEP)

"""Good specs, and what can become of them: slips of the hand, half-saved files, guesses of YAML, and malice."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

GOOD = (
    """\
# yaml-language-server: $schema=../schemas/mikrom.schema.json
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web, tags: [web, tier-1]}
spec:
  vars: {mem: 64, role: "front end"}
  replicas: 3
  vm_name: web-${index:03d}
  template:
    image: hello   # ships with mikrom
    machine: {vcpu_count: 1, mem_size_mib: "${mem}"}
    boot_args: console=ttyS0 role=${role}
    state: running
  overrides:
    - {match: web-000, machine: {mem_size_mib: 128}}
    - match: web-*
      boot_args: quiet
  prune: {max: 20%, allow_empty: false}
  lifecycle:
    prevent_destroy: true
    ignore_changes: [boot_args, machine.vcpu_count]
""",
    """\
apiVersion: mikrom/v1
kind: Project
metadata: {name: demo}
---
apiVersion: mikrom/v1
kind: Inventory
metadata: {name: demo}
spec:
  hosts:
    hv01: {vars: {rack: a, gen: 2}}
    hv02: {vars: {rack: b}}
    hv03:
  groups:
    gen2: {hosts: [hv01, hv02]}
    edge: {children: [gen2], vars: {ntp: "10.0.0.1"}}
---
apiVersion: mikrom/v1
kind: Fleet
metadata:
  name: db
spec:
  hosts: edge:&gen2:!hv02
  instances:
    db-primary: &defaults
      host: hv01
      machine: {vcpu_count: 4, mem_size_mib: 512}
    db-replica: {<<: *defaults, host: hv02, state: stopped}
  template:
    image: hello
    boot_args: >-
      console=ttyS0
      rack=${host.rack}
""",
    "{apiVersion: mikrom/v1, kind: Fleet, metadata: {name: one}, spec: {replicas: 1, template: {image: hello}}}\n",
)

NASTY = (
    "no", "Yes", "on", "010", "0o17", "0x1F", "0b1", "1_000", "12:30", "2026-11-22", "2026-11-22T10:00:00Z", "1e3",
    ".inf", "-.5", "1.", ".nan", "~", "null", "true", "1.5", "-1", "99999999999999999999", "9" * 400, "1" * 400 + ".0",
    "&a", "*a", "*web", "&a [*a]", "!!str", "!x", "!!python/object/apply:os.system ['x']", "<<", "<<: 3", "<<: [1]",
    "[", "]", "{", "}", "{{ name }}", "[" * 40, "'", '"', "|", ">", "|2", ">-", "- ", "? ", ": ",
    ":", ",", "#", " #", "%", "%YAML 1.1", "---", "--- |", "...", "\t", "\r", "\r\n", "\x85", "\u2028", "\ufeff", "\0",
    "\x07", "\x1b[31m", "\x7f", "\U0001f980", "ä", "é", "日本", "${", "${x}", "${mem}", "$${", "${index:9x}",
    "${host.rack}", "\\", '"\\ud800"', '"\\0"', '"\\x1b"', '"\\q"', "=", "@a", "`a", "a" * 300, "''", '""', "[]", "{}",
    "imgae", "repliacs", "Fleet", "Network", "mikrom/v2", "hv09", "~hv(", "hv[01:99999999]", "web-[000:099]", "120%",
    "33",
)  # fmt: skip


def spoilt(chance: Random) -> str:
    """A good file after one to three accidents."""
    text = chance.choice(GOOD)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        text = chance.choice(ACCIDENTS)(text, chance)
    return text


def _char_lost(text: str, chance: Random) -> str:
    at = chance.randrange(len(text) or 1)
    return text[:at] + text[at + chance.choice([1, 1, 2, 9]) :]


def _chars_swapped(text: str, chance: Random) -> str:
    at = chance.randrange(max(1, len(text) - 1))
    return text[:at] + text[at : at + 2][::-1] + text[at + 2 :]


def _nasty_put_in(text: str, chance: Random) -> str:
    at = chance.randrange(len(text) + 1)
    return text[:at] + chance.choice(NASTY) + text[at:]


def _nasty_for_a_word(text: str, chance: Random) -> str:
    """A value, a key or an item becomes something else."""
    words = text.split(" ")
    at = chance.randrange(len(words))
    tail = words[at][len(words[at].rstrip(",:}]\n")) :]
    words[at] = chance.choice(NASTY) + tail
    return " ".join(words)


def _line_lost(text: str, chance: Random) -> str:
    lines = text.splitlines(keepends=True)
    lines[chance.randrange(len(lines) or 1) :][:1] = []
    del lines[chance.randrange(len(lines) or 1) : 1]
    return "".join(lines)


def _line_doubled(text: str, chance: Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = chance.randrange(len(lines))
    return "".join([*lines[: at + 1], *lines[at:]])


def _lines_swapped(text: str, chance: Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return "".join(lines)


def _line_moved(text: str, chance: Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = chance.randrange(len(lines))
    lines[at] = (
        lines[at][chance.choice([1, 2]) :] if chance.random() < 0.5 else chance.choice([" ", "  ", "\t"]) + lines[at]
    )
    return "".join(lines)


def _cut_off(text: str, chance: Random) -> str:
    return text[: chance.randrange(len(text) + 1)]


def _windows(text: str, chance: Random) -> str:
    return text.replace("\n", chance.choice(["\r\n", "\r"]))


def _doubled(text: str, chance: Random) -> str:
    return text + chance.choice(["", "---\n", "...\n"]) + text


ACCIDENTS: tuple[Callable[[str, Random], str], ...] = (
    _char_lost, _chars_swapped, _nasty_put_in, _nasty_for_a_word, _nasty_for_a_word, _nasty_for_a_word, _line_lost,
    _line_doubled, _lines_swapped, _line_moved, _cut_off, _windows, _doubled,
)  # fmt: skip

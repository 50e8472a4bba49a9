"""Documents as their readers use them: every command of their ```console blocks, in one shell, in order.

A line that begins with "$ " is a command, and a here-document belongs to it; what follows is what it prints. "…" on a
line of its own stands for lines that are not shown. A command that fails is followed by `$ echo $?`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_HERE = re.compile(r"<<'?(\w+)'?")
_LEFT_OUT = "…"
_MARK = "@@ end of step"
_VOLATILE = (
    (re.compile(r"\b\d+ min \d+ s\b|\b\d+(\.\d+)? m?s\b"), "TIME"),
    (re.compile(r"\b\d+(s|min|h|d)\b"), "AGE"),
    (re.compile(r"(files:)?\b[0-9a-f]{12}\b(-dirty)?"), "REVISION"),
    (re.compile(r"(?<=\s)\d{3,}(?=\s|$)"), "PID"),
    (re.compile(r"\s+"), " "),
)
_PROGRESS = re.compile(r"^(created|started|stopped|updated|restarted|deleted) \S+ on \S+ in ")
"""What stderr shows where nobody watches; a terminal shows it on one line that is gone in the end."""


class Step(NamedTuple):
    """One command, the line of the document that it begins on, and the lines that are shown below it."""

    line: int
    command: str
    shown: list[str]


class Ending(NamedTuple):
    """What a command printed, and its exit code."""

    printed: list[str]
    code: int


def steps_of(document: str) -> list[Step]:
    """The steps of a document, in order."""
    steps: list[Step] = []
    inside, until = False, ""
    for number, line in enumerate(document.splitlines(), 1):
        if until:
            command = f"{steps[-1].command}\n{line}"
            steps[-1] = steps[-1]._replace(command=command)
            until = "" if line == until else until
        elif line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            here = _HERE.search(line)
            until = here[1] if here else ""
            steps.append(Step(number, line[2:], []))
        elif inside:
            steps[-1].shown.append(line)
    return steps


def play(steps: Sequence[Step], *, folder: Path, environment: Mapping[str, str], before: str = "") -> list[Ending]:
    """Run the steps in one bash that begins in `folder`, after the commands `before`."""
    parts = [before]
    for step in steps:
        parts += [step.command, f"code=$?; echo '{_MARK}' $code; echo '{_MARK}' >&2; (exit $code)"]
    script = folder / ".steps.sh"
    script.write_text("\n".join(parts) + "\n")
    done = subprocess.run(
        ["bash", str(script)], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=600,
    )  # fmt: skip
    said = done.stderr.split(f"{_MARK}\n")
    printed = re.findall(rf"(.*?){_MARK} (\d+)\n", done.stdout, re.DOTALL)
    assert len(printed) == len(steps), f"the shell ended early: {done.stdout}{done.stderr}"
    return [
        Ending([*out.splitlines(), *(line for line in err.splitlines() if not _PROGRESS.match(line))], int(code))
        for (out, code), err in zip(printed, said, strict=False)
    ]


def differences(steps: Sequence[Step], endings: Sequence[Ending]) -> Iterator[str]:
    """Where the document is not true."""
    for number, (step, ending) in enumerate(zip(steps, endings, strict=True)):
        asks = number + 1 < len(steps) and steps[number + 1].command == "echo $?"
        if ending.code != 0 and not asks:
            yield f"line {step.line}: {step.command}\nends with {ending.code}:\n" + "\n".join(ending.printed)
        elif not _agree(_masked(step.shown), _masked(ending.printed)):
            shown, printed = "\n".join(step.shown), "\n".join(ending.printed)
            yield f"line {step.line}: {step.command}\n--- shown\n{shown}\n--- printed\n{printed}"


def rewritten(document: str, steps: Sequence[Step], endings: Sequence[Ending]) -> str:
    """The document with what its commands print now. What stays true stays as it is, and so does what has "…"."""
    lines = document.splitlines()
    for step, ending in reversed(list(zip(steps, endings, strict=True))):
        if _LEFT_OUT in step.shown or _agree(_masked(step.shown), _masked(ending.printed)):
            continue
        first = step.line + step.command.count("\n")
        lines[first : first + len(step.shown)] = "\n".join(ending.printed).rstrip().splitlines()
    return "\n".join(lines) + "\n"


def _masked(lines: Sequence[str]) -> list[str]:
    """The lines without what differs from run to run; empty ones left out."""
    masked = []
    for line in lines:
        plain = line
        for pattern, word in _VOLATILE:
            plain = pattern.sub(word, plain)
        if plain.strip():
            masked.append(plain.strip())
    return masked


def _agree(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether `printed` is what is shown, with any lines where "…" stands."""
    if not shown:
        return not printed
    if shown[0] != _LEFT_OUT:
        return bool(printed) and shown[0] == printed[0] and _agree(shown[1:], printed[1:])
    return any(_agree(shown[1:], printed[start:]) for start in range(len(printed) + 1))

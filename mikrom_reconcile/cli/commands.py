"""The commands by name, read off the page that lists them: all that `mikrom --help` imports; click takes too long."""

import os

_MODULES = {
    "specs": "init validate render image explain schema",
    "get": "get status describe orphans images logs events history",
    "simulate": "simulate",
    "adopt": "adopt",
    "setup": "doctor chaos completion version up worker beat flower",
}
"""Which module here holds the click commands of these names; those of all others are in `apply`."""


def overview() -> str:
    """The page that `mikrom --help` shows."""
    with open(f"{os.path.dirname(__file__)}/overview.txt", encoding="utf-8") as page:  # noqa: PTH120, PTH123 - quick
        return page.read()


COMMANDS: dict[str, tuple[str, str]] = {}  # name to: its module, its help
for _line in overview().splitlines():
    if _line.startswith("  "):
        _name, _text = _line.split(maxsplit=1)
        _module = next((module for module, names in _MODULES.items() if _name in names.split()), "apply")
        COMMANDS[_name] = _module, _text

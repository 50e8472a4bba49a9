"""Lookups of variables, `${name}`, `${index:03d}`, `${host.rack}`, without logic; `$${` is a literal `${`. A scalar
that is exactly one `${x}` takes the type of x; inside other text x becomes text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from mikrom_reconcile.core.model.documents import Pointer
from mikrom_reconcile.core.parsing.yaml_words import plain
from mikrom_reconcile.times_and_sizes import SPECS

_LOOKUP = re.compile(r"\$\$\{|\$\{([^}]*)\}|\$\{")
_INSIDE = re.compile(r"^([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)(?::(0?[1-9][0-9]?d))?$")
BUILT_IN_NAMES = frozenset({"name", "index", "fleet", "project", "host"})
"""What every VM knows of itself; no variable can be called so."""


class VariableError(ValueError):
    """A lookup cannot be answered; `name` is the variable, "" if the text is no lookup at all."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """Variables from one place. `origin` says where, for `render --explain`."""

    origin: str
    values: Mapping[str, Any]


class Scope:
    """What names mean for one VM: layers, the strongest first. Remembers which names were looked up."""

    def __init__(self, *layers: Layer) -> None:
        self._layers = layers
        self.used: dict[str, tuple[Any, str]] = {}
        self._lengths: dict[str, int] = {}
        self._made = 0

    def lookup(self, name: str, depth: int = 0) -> Any:
        """The value of `name`. Raises VariableError when no layer has it or it leads in a circle."""
        if name not in self.used:
            self.used[name] = found = self._found(name, depth)
            self._lengths[name] = len(str(found[0]))
        self._made += self._lengths[name]
        if self._made > SPECS.lookup_characters:
            raise VariableError(f"the lookups of one VM make more than {SPECS.lookup_characters} characters", name)
        return self.used[name][0]

    def _found(self, name: str, depth: int) -> tuple[Any, str]:
        if depth > SPECS.max_variable_depth:
            raise VariableError(f"${{{name}}} leads in a circle", name)
        for layer in self._layers:
            value = dig(layer.values, name.split("."), _NOT_SET)
            if value is not _NOT_SET:
                return self.resolve(value, depth + 1), layer.origin
        raise VariableError(f"${{{name}}} is not defined", name)

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """`value` with every lookup in it answered."""
        if isinstance(value, str):
            return self._text(value, depth) if "${" in value else value
        if isinstance(value, dict):
            return {key: self.resolve(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, depth) for item in value]
        return value

    def _text(self, text: str, depth: int) -> Any:
        whole = _LOOKUP.fullmatch(text)
        if whole and whole[1] is not None and ":" not in whole[1]:
            found = self.lookup(_parsed(whole)[0], depth)
            return found if depth else plain(found)
        return _LOOKUP.sub(lambda match: self._piece(match, depth), text)

    def _piece(self, match: re.Match[str], depth: int) -> str:
        if match[0] == "$${":
            return "${"
        name, form = _parsed(match)
        value = self.lookup(name, depth)
        if isinstance(value, dict | list):
            kind = "mapping" if isinstance(value, dict) else "list"
            raise VariableError(f"${{{name}}} is a {kind} and cannot stand inside text", name)
        if form:
            if not isinstance(value, int) or isinstance(value, bool):
                raise VariableError(f"${{{name}:{form}}}: {name} is not a whole number", name)
            return format(value, form)
        if value is None:
            return ""
        return str(value).lower() if isinstance(value, bool) else str(value)


def unescaped(text: str) -> str:
    """What a text without lookups says: $${ stands for ${ everywhere."""
    return text.replace("$${", "${")


def names_in(value: Any) -> frozenset[str]:
    """The names that a value looks up directly; "" stands for what is no lookup, although it begins like one."""
    texts = (text for _, text in walk(value) if isinstance(text, str) and "${" in text)
    found = (match for text in texts for match in _LOOKUP.finditer(text) if match[0] != "$${")
    lookups = (_INSIDE.match(match[1] or "") for match in found)
    return frozenset(lookup[1] if lookup else "" for lookup in lookups)


def _parsed(lookup: re.Match[str]) -> tuple[str, str]:
    match = _INSIDE.match(lookup[1] or "")
    if not match:
        raise VariableError(f"{lookup[0]} is no lookup; write ${{name}}, ${{index:03d}}, or $${{ for the text", "")
    return match[1], match[2] or ""


def walk(value: Any, place: Pointer = ()) -> Iterator[tuple[Pointer, Any]]:
    """A value and every value inside of it, each with its place."""
    left = [(place, value)]
    while left:
        place, value = left.pop()
        yield place, value
        if isinstance(value, dict | list):
            steps = value if isinstance(value, dict) else range(len(value))
            left += [((*place, step), value[step]) for step in reversed(steps)]


def dig(values: Any, path: Iterable[Any], default: Any = None) -> Any:
    """What nested mappings have at `path`."""
    for step in path:
        if not isinstance(values, Mapping) or step not in values:
            return default
        values = values[step]
    return values


_NOT_SET: Final = object()

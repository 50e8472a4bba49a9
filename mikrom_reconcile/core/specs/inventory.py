"""The inventory: hosts, groups, the variables of both, patterns in Ansible's grammar (`kvm:&gen2:!hv03`, `hv[01:10]`,
`web*`, `~hv(01|07)`, `all`), and what a fleet asks of hosts in the words of Nomad.
"""

import operator
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import translate
from functools import cache, cached_property
from typing import Annotated, Any, Literal

import msgspec

from mikrom_reconcile.core.model.documents import SpecDocument
from mikrom_reconcile.core.parsing.schema_errors import describe_value
from mikrom_reconcile.core.parsing.variables import Layer, Scope, VariableError, unescaped
from mikrom_reconcile.times_and_sizes import SPECS

EVERY = frozenset({"all", "*"})
RESERVED = ("all", "ungrouped")  # words with a meaning in patterns: nothing can be called so
_PIECE = re.compile(r"\\.|\[\^?\]?[^\]]*\]|.", re.DOTALL)
_RANGE = re.compile(r"^(.*?)\[([0-9]{1,9}):([0-9]{1,9})\](.*)$")


class PatternError(ValueError):
    """A pattern cannot be read, or nothing is called as a `term` of it is; that is "" if no other could be meant."""

    def __init__(self, message: str, term: str = "") -> None:
        super().__init__(message)
        self.term = term


def select(
    pattern: str, names: Iterable[str], groups: Mapping[str, frozenset[str]], kinds: str = "host and no group"
) -> tuple[str, ...]:
    """The names that `pattern` selects, sorted. Terms without a sign are added up first, then `&` keeps what both have,
    then `!` takes away, in whatever order. `groups` maps a group to its names. Raises PatternError for a term that is
    no name, no group and no wildcard of anything; `kinds` says what there is.
    """
    everything = frozenset(names)
    found: dict[str, list[frozenset[str]]] = {"": [], "&": [], "!": []}
    written = [(sign, word) for sign, word in terms(pattern) if sign or word]
    if not written:
        raise PatternError("an empty pattern selects nothing; write all")
    for sign, word in written:
        matching = _matching(word, everything, groups)
        if matching is None:
            raise PatternError(f"{word!r} matches no {kinds}", word)
        found[sign].append(matching)
    added = frozenset().union(*found[""]) if found[""] else everything
    return tuple(sorted(added.intersection(*found["&"]).difference(*found["!"])))


def terms(pattern: str) -> list[tuple[str, str]]:
    """The terms of a pattern, each as its sign and its word, empty ones included."""
    texts, depth = [""], 0
    for piece in _PIECE.findall(pattern):
        if piece in {":", ","} and not depth:
            texts.append("")
        else:
            texts[-1] += piece
            depth += (piece in {"(", "{"}) - (piece in {")", "}"})
    return [(text[0], text[1:]) if text[:1] in {"&", "!"} else ("", text) for text in map(str.strip, texts)]


def _matching(term: str, names: frozenset[str], groups: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """What a word means; None if that is nothing, and not even an empty group."""
    if term in EVERY:
        return names
    if term in names:
        return frozenset({term})
    if term in groups:
        return groups[term]
    tests = _tests(term)
    found = frozenset(name for test in tests for name in names if test(name))
    inside = [groups[group] for test in tests for group in groups if test(group)]
    return found.union(*inside) if found or inside else None


def _tests(term: str) -> list[Callable[[str], Any]]:
    expressions = [term[1:]] if term.startswith("~") else map(translate, _ranged(term))
    try:
        return [re.compile(expression).match for expression in expressions]
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternError(f"{term!r} is not a regular expression: {error}") from None


def _ranged(term: str) -> list[str]:
    """`hv[01:03]` as hv01, hv02, hv03; a term without a range as itself."""
    match = _RANGE.match(term)
    if not match:
        return [term]
    head, first, last, tail = match.groups()
    numbers, rests = range(int(first), int(last) + 1), _ranged(tail)
    if len(numbers) * len(rests) > SPECS.pattern_range:
        raise PatternError(f"{term!r} stands for more than {SPECS.pattern_range} names")
    return [f"{head}{number:0{len(first)}d}{rest}" for number in numbers for rest in rests]


Resource = Literal["vcpu_count", "mem_size_mib"]


class Sizing(msgspec.Struct, frozen=True, kw_only=True):
    """What the inventory says of how much a host may be promised: what it has, how often that, what it keeps."""

    capacity: dict[Resource, int] = {}
    overcommit: dict[Resource, float] = {}
    reserve: dict[Resource, int] = {}


class Host(Sizing, frozen=True, kw_only=True):
    """One hypervisor host; `state` says whether it gets new VMs, keeps those that it has, or loses them too."""

    vars: dict[str, Any] = {}
    state: Literal["active", "cordon", "drain"] = "active"


class Group(Sizing, frozen=True, kw_only=True):
    """Hosts that have something in common, directly or through other groups."""

    hosts: tuple[str, ...] = ()
    children: tuple[str, ...] = ()
    vars: dict[str, Any] = {}


class Inventory(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All hosts and groups; one without hosts stands for none. Answers are cached: thousands of fleets ask the same."""

    hosts: dict[str, Host] = {}
    groups: dict[str, Group] = {}
    group_vars: dict[str, dict[str, Any]] = {}
    host_vars: dict[str, dict[str, Any]] = {}
    document: SpecDocument = SpecDocument(path="", line=1, kind="Inventory", name="", body={})

    @cached_property
    def members(self) -> dict[str, frozenset[str]]:
        """Each group with all its hosts, those of its children included. Groups in a circle share theirs."""
        return {name: frozenset(self._hosts_of(name)) for name in self.groups}

    @cached_property
    def select(self) -> Callable[[str], tuple[str, ...]]:
        """The hosts that a pattern selects, sorted. Raises PatternError."""
        return cache(lambda pattern: select(pattern, self.hosts, self.members))

    @cached_property
    def layers(self) -> Callable[[str], tuple[Layer, ...]]:
        """The variables of a host, the strongest first: host_vars, group_vars, the inventory's own."""
        return cache(self._layers)

    def _layers(self, host: str) -> tuple[Layer, ...]:
        groups = self._groups_of(host)
        found = [
            Layer(origin=f"host_vars/{host}", values=self.host_vars.get(host, {})),
            *(Layer(origin=f"group_vars/{name}", values=self.group_vars.get(name, {})) for name in (*groups, "all")),
            Layer(origin=f"host {host} in {self.document.path}", values=self.hosts.get(host, Host()).vars),
            *(Layer(origin=f"group {name} in {self.document.path}", values=self.groups[name].vars) for name in groups),
        ]
        return tuple(layer for layer in found if layer.values)

    def _groups_of(self, host: str) -> list[str]:
        """The groups that a host is in, the most special first: children before parents."""
        inside = [name for name, hosts in self.members.items() if host in hosts]
        return sorted(inside, key=lambda name: (self._depths[name], name), reverse=True)

    def facts(self, host: str) -> dict[str, Any]:
        """What `${host.…}` means: all variables of the host, and its name."""
        values: dict[str, Any] = {}
        for layer in reversed(self.layers(host)):
            values |= layer.values
        return values | {"name": host}

    @cached_property
    def agreed(self) -> Callable[[str], dict[str, Any]]:
        """The facts in which all hosts that a pattern selects agree."""
        return cache(self._agreed)

    def _agreed(self, pattern: str) -> dict[str, Any]:
        first, *others = [self.facts(host) for host in self.select(pattern)]
        same = (it for it in first if all(it in other and repr(other[it]) == repr(first[it]) for other in others))
        return {key: first[key] for key in same}

    def sizing(self, host: str) -> Sizing:
        """How much a host may be promised: what it says itself, else its groups, the most special first."""
        said: list[Sizing] = [self.hosts.get(host, Host()), *(self.groups[name] for name in self._groups_of(host))]
        return Sizing(
            capacity=dict(ChainMap(*(each.capacity for each in said))),
            overcommit=dict(ChainMap(*(each.overcommit for each in said))),
            reserve=dict(ChainMap(*(each.reserve for each in said))),
        )

    def _hosts_of(self, group: str) -> Iterator[str]:
        unseen, left = set(self.groups), [group]
        while left:
            if (name := left.pop()) in unseen:
                unseen.remove(name)
                left += self.groups[name].children
                yield from self.groups[name].hosts

    @cached_property
    def _depths(self) -> dict[str, int]:
        """How many groups stand above each, by the longest way; those in a circle are as deep as there are groups."""
        depths = dict.fromkeys(self.groups, 0)
        below = set(self.groups)
        for depth in range(len(self.groups)):
            for name in below:
                depths[name] = depth
            below = {child for name in below for child in self.groups[name].children if child in depths}
        return depths


Operator = Literal["=", "!=", ">", ">=", "<", "<=", "regexp", "set_contains", "is_set", "is_not_set"]
Value = str | int | float | bool | None


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """The host's variable must compare so with the value; one that is not set meets only `!=` and `is_not_set`."""

    attribute: str
    operator: Operator = "="
    value: Value = None


class Affinity(Constraint, frozen=True, kw_only=True):
    """Hosts that meet it are better by `weight`, or worse if that is negative."""

    weight: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 50


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """No value of the attribute should have more than `max_skew` VMs above the value that has the fewest."""

    attribute: str
    max_skew: Annotated[int, msgspec.Meta(ge=1)] = 1


class PlacementSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet's `placement`."""

    constraint: tuple[Constraint, ...] = ()
    affinity: tuple[Affinity, ...] = ()
    spread: tuple[Spread, ...] = ()


class Attributes:
    """The variables of hosts, under the names that constraints have for them: `host.rack`."""

    def __init__(self, inventory: Inventory, extra_vars: Mapping[str, Any]) -> None:
        self._inventory = inventory
        self._extra = Layer(origin="-e", values=extra_vars)
        self.value = cache(self._value)

    def _value(self, host: str, attribute: str) -> Any:
        """The value with its lookups answered; None where it is not set or cannot be answered."""
        built_in = Layer(origin="built in", values={"host": self._inventory.facts(host)})
        try:
            return Scope(built_in, self._extra, *self._inventory.layers(host)).lookup(attribute)
        except VariableError:
            return None

    def first_violation(self, host: str, placement: PlacementSpec) -> str:
        """The first constraint that the host does not meet, in words; "" if it meets all."""
        for each in placement.constraint:
            value = self.value(host, each.attribute)
            if not satisfies(each.operator, value, each.value):
                wanted = "" if each.operator in UNARY else f" {describe_attribute(each.value)}"
                return f"{each.attribute} is {describe_attribute(value)}, wanted {each.operator}{wanted}"
        return ""

    def weight(self, host: str, placement: PlacementSpec) -> int:
        """The weights of all affinities that the host meets, added up."""
        met = (it for it in placement.affinity if satisfies(it.operator, self.value(host, it.attribute), it.value))
        return sum(it.weight for it in met)


def describe_attribute(value: Any) -> str:
    """A host's value as messages show it."""
    return "not set" if value is None else describe_value(value)


def satisfies(test: Operator, value: Any, wanted: Value) -> bool:
    """Whether a host's value compares so with what is wanted. Only like is compared: numbers, or texts."""
    wanted = unescaped(wanted) if isinstance(wanted, str) else wanted
    match test:
        case "is_set" | "is_not_set":
            return (value is not None) == (test == "is_set")
        case "=" | "!=":
            equal = isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)
            return equal == (test == "=")
        case "regexp":
            return value is not None and re.search(str(wanted), str(value)) is not None
        case "set_contains":
            return isinstance(value, list) and wanted in value
        case _:
            numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (value, wanted))
            alike = numbers or (isinstance(value, str) and isinstance(wanted, str))
            return alike and bool(_ORDERS[test](value, wanted))


UNARY = frozenset({"is_set", "is_not_set"})  # operators that take no value
_ORDERS: dict[str, Any] = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}

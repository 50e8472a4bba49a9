"""What a fleet asks of its hosts' variables: constraint (must hold), affinity (better where it holds), spread (evenly
over its values). The words and operators are Nomad's.

It looks at hosts one by one; who gets which host is decided in `core/placement/scheduler.py`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from mikrom_reconcile.core.parsing.schema_errors import describe_value
from mikrom_reconcile.core.parsing.variables import Layer, Scope, VariableError, unescaped
from mikrom_reconcile.core.specs.inventory import Inventory

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
        self._known: dict[tuple[str, str], Any] = {}

    def value(self, host: str, attribute: str) -> Any:
        """The value with its lookups answered; None where it is not set or cannot be answered."""
        if (host, attribute) not in self._known:
            built_in = Layer(origin="built in", values={"host": self._inventory.facts(host)})
            try:
                found = Scope(built_in, self._extra, *self._inventory.layers(host)).lookup(attribute)
            except VariableError:
                found = None
            self._known[host, attribute] = found
        return self._known[host, attribute]

    def first_violation(self, host: str, placement: PlacementSpec) -> str:
        """The first constraint that the host does not meet, in words; "" if it meets all."""
        for each in placement.constraint:
            value = self.value(host, each.attribute)
            if not satisfies(each.operator, value, each.value):
                wanted = (
                    each.operator if each.operator in UNARY else f"{each.operator} {describe_attribute(each.value)}"
                )
                return f"{each.attribute} is {describe_attribute(value)}, wanted {wanted}"
        return ""

    def weight(self, host: str, placement: PlacementSpec) -> int:
        """The weights of all affinities that the host meets, added up."""
        return sum(
            each.weight
            for each in placement.affinity
            if satisfies(each.operator, self.value(host, each.attribute), each.value)
        )


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


UNARY = frozenset({"is_set", "is_not_set"})
"""Operators that take no value."""

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

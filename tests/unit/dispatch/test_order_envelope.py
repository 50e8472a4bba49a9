"""How a host takes an order apart that may be anything."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, strategies as st

from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.dispatch.transport.order_envelope import OrderEnvelope, addressed, opened, read_order, refused
from tests.fakes import order

GOOD = msgspec.to_builtins(order("create", "web-1"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(allow_nan=False),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=9), inside, max_size=3),
)


def sent(document: object) -> OrderEnvelope:
    return OrderEnvelope(call="execute-1", order=msgspec.json.encode(document).decode(), release="9.9.9")


def test_what_was_sent_is_what_is_read() -> None:
    assert read_order(sent(GOOD), lambda: True) == order("create", "web-1")


def test_nothing_is_read_before_it_is_proved() -> None:
    with pytest.raises(MikromError, match="is not signed"):
        read_order(OrderEnvelope(call="execute-1", order="\0 no JSON"), lambda: False)


@given(document=JSON)
def test_whatever_is_no_order_is_an_error_of_ours_and_has_an_outcome(document: object) -> None:
    with pytest.raises(MikromError, match=r"it came from mikrom 9\.9\.9"):
        read_order(sent(document), lambda: True)
    assert refused(sent(document), "stop", "hv01", "a test").result == "failed_permanent"


@given(arguments=st.dictionaries(st.sampled_from(OrderEnvelope.__struct_fields__), JSON))
def test_whatever_is_sent_there_is_somebody_to_answer(arguments: dict[str, object]) -> None:
    to = addressed(arguments)
    assert refused(to, "stop", "hv01", "a test").error == "a test"
    with suppress(MikromError):
        assert opened(arguments) == OrderEnvelope(**arguments)  # type: ignore[arg-type]


@given(place=st.sampled_from(["", "action", "action.desired", "action.desired.spec", "action.expect"]), value=JSON)
def test_a_field_that_is_not_ours_is_never_dropped_in_silence(place: str, value: object) -> None:
    document = msgspec.json.decode(msgspec.json.encode(GOOD))
    inside = document
    for name in filter(None, place.split(".")):
        inside = inside[name]
    inside["teleporter"] = value
    with pytest.raises(MikromError, match="says something that this host does not know"):
        read_order(sent(document), lambda: True)


@pytest.mark.parametrize("depth", [400, 100_000])
def test_what_is_nested_without_end_is_no_error_but_ours(depth: int) -> None:
    text = msgspec.json.encode(GOOD).decode()
    nested = text.replace('"mmds":null', '"mmds":' + '{"a":' * depth + "1" + "}" * depth)
    assert nested != text
    with suppress(MikromError):  # at which depth it is too deep is Python's matter
        read_order(OrderEnvelope(call="execute-1", order=nested), lambda: True)
    assert refused(OrderEnvelope(call="execute-1", order=nested), "create", "hv01", "a test").error == "a test"

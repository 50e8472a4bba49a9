"""What cannot be in a Network document although its schema lets it pass, and which networks share addresses."""

from __future__ import annotations

from typing import Any

import pytest

from mikrom_reconcile.core.specs.networks import network_mistakes, network_of, overlapping


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"gateway": "10.0.0.999"}, "10.0.0.999 is no IPv4 address"),
        ({"gateway": "10.0.0.255"}, "10.0.0.255 is the network's own or its broadcast address"),
        ({"gateway": "10.0.1.1"}, "10.0.1.1 is not in 10.0.0.0/24"),
        ({"reserved": ["10.0.0.9-10.0.0.999"]}, "10.0.0.9-10.0.0.999 is no range of addresses"),
        ({"reserved": ["10.0.0.9-10.0.0.8"]}, "10.0.0.9-10.0.0.8 runs backwards"),
    ],
)
def test_an_address_that_cannot_be_is_told(spec: dict[str, Any], told: str) -> None:
    ((_, why),) = network_mistakes({"cidr": "10.0.0.0/24", **spec})
    assert told in why


def test_only_networks_that_share_addresses_overlap() -> None:
    networks = [network_of(name, {"cidr": cidr}) for name, cidr in (("a", "10.0.0.0/24"), ("b", "10.0.1.0/24"))]
    assert list(overlapping(networks)) == []
    assert list(overlapping([*networks, network_of("c", {"cidr": "10.0.1.0/30"})])) == [("c", "b")]


def test_each_network_is_told_of_all_that_lie_around_it() -> None:
    cidrs = {"in": "10.1.2.0/24", "around": "10.0.0.0/8", "beside": "11.0.0.0/8", "between": "10.1.0.0/16"}
    networks = [network_of(name, {"cidr": cidr}) for name, cidr in cidrs.items()]
    assert set(overlapping(networks)) == {("between", "around"), ("between", "in"), ("around", "in")}

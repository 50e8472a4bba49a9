"""Digests that control and hosts compute apart from each other: each part counts, the order does not."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from mikrom_reconcile.core.model.desired import Machine, Policy, SecretRef, VMSpec
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.encoding import digest_of, fleet_digest, spec_digest, texts_digest
from mikrom_reconcile.core.model.observed import Drift

Row = tuple[str, str, str, tuple[Drift, ...]]
ROW: Row = ("web-000", "1:aa", "running", ())
OTHER = ("web-001", "1:bb", "stopped", (Drift(path="boot_args", recorded="a", actual="b"),))
SPEC = VMSpec(image="hello")


def test_the_order_of_the_rows_does_not_count() -> None:
    rows = (ROW, OTHER, ("a", "1:cc", "running", ()))
    assert len({fleet_digest(order) for order in permutations(rows)}) == 1


def test_every_part_of_a_row_counts() -> None:
    name, spec, phase, _ = ROW
    drifts = [(Drift(path=path, recorded="a", actual=actual),) for path in ("boot_args", "image") for actual in "bc"]
    rows: list[tuple[str, str, str, tuple[Drift, ...]]] = [ROW]
    rows += [(name, spec, "paused", ()), (name, "1:ab", phase, ()), ("web-00", spec, phase, ())]
    rows += [(name, spec, phase, drift) for drift in drifts]
    assert len({fleet_digest([row]) for row in rows}) == len(rows)
    assert len({fleet_digest(()), fleet_digest([ROW]), fleet_digest([ROW, OTHER]), fleet_digest([ROW, ROW])}) == 4


def test_what_stands_in_two_rows_is_not_what_stands_in_one() -> None:
    assert fleet_digest([("a", "b", "running", ())]) != fleet_digest([("a\0b", "", "running", ())])


def test_everything_that_is_recorded_counts() -> None:
    known: dict[str, Any] = {"project": "shop", "fleet": "web", "state": "running", "spec": SPEC, "policy": Policy()}
    others: list[dict[str, Any]] = [
        {"project": "bank"},
        {"fleet": "api"},
        {"state": "stopped"},
        {"spec": VMSpec(image="hello", machine=Machine(vcpu_count=2))},
        {"spec": VMSpec(image="hello", boot_args="a")},
        {"policy": Policy(allow_empty=True)},
        {"policy": Policy(prevent_destroy=True)},
        {"policy": Policy(prevent_destroy=False)},
    ]
    digests = {spec_digest(**known | other) for other in [{}, *others]}
    assert len(digests) == len(others) + 1


def test_a_digest_begins_with_its_version_and_does_not_change_by_itself() -> None:
    """Digests are in the records of hosts: another value here means that every record has to be compared once."""
    assert digest_of({"b": 1, "a": [True, None]}) == "1:6a0f35aa86c886528608b4dea5d46072"


def test_what_files_say_counts_and_not_what_they_are_called() -> None:
    def tree(**texts: str) -> SourceTree:
        return SourceTree(revision="", files=tuple(SourceFile(path=path, text=text) for path, text in texts.items()))

    assert texts_digest(tree(a="one", b="two")) == texts_digest(tree(d="two", c="one"))
    assert len({texts_digest(one) for one in (tree(a="one"), tree(a="two"), tree(a="one", b="one"), tree())}) == 4


def test_a_secret_in_the_environment_needs_a_metadata_service() -> None:
    secret = VMSpec(image="hello", env={"TOKEN": SecretRef(secret_ref="env://TOKEN")})
    assert (secret.has_metadata, VMSpec(image="hello").has_metadata) == (True, False)

"""Deeds by name as a person types them, on the simulated driver; the fleet does the same over its workers."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import WEB, Mikrom, document, names, write_specs


def phases(mikrom: Mikrom) -> dict[str, str]:
    return {vm["name"]: vm["phase"] for vm in json.loads(mikrom("get", "vms", "-o", "json").stdout)["vms"]}


def test_a_vm_goes_through_every_verb_and_the_next_apply_undoes_what_the_specs_contradict(mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")
    for verb in ("stop", "start", "pause", "resume", "restart", "pause"):
        said = mikrom(verb, "web-000").stdout
        assert "all is as asked for" in said, said
        assert ("the next run undoes" in said) == (verb != "restart")
    assert "Nothing to change: 1 VM as asked for" in mikrom("pause", "web-000").stdout
    assert phases(mikrom) == {"web-000": "paused", "web-001": "running", "web-002": "running"}
    assert "~ resume   web-000" in mikrom("apply", "--yes").stdout
    assert set(phases(mikrom).values()) == {"running"}


def test_a_delete_asks_and_a_pattern_takes_many(mikrom: Mikrom) -> None:
    mikrom("apply", "--yes")
    assert "--yes" in mikrom("delete", "web-000", code=64).stderr
    run = document("run", mikrom("delete", "web-00[01]", "--yes", "-o", "json"))
    assert sorted((told["vm"], told["verb"], told["result"]) for told in run["outcomes"]) == [
        ("web-000", "delete", "done"), ("web-001", "delete", "done"),
    ]  # fmt: skip
    assert names(mikrom) == ["web-002"]
    assert "no host has a VM 'web-000'" in mikrom("stop", "web-000", code=64).stderr


def test_protection_holds_and_says_the_way_out(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, WEB % 3 + "  lifecycle: {prevent_destroy: true}\n")
    mikrom("apply", "--yes")
    said = mikrom("delete", "web-*", "--yes", code=8).stdout
    assert "prevent_destroy: false" in said
    assert len(names(mikrom)) == 3


def test_what_has_no_record_or_no_spec_is_an_orphan(mikrom: Mikrom, folder: Path) -> None:
    mikrom("apply", "--yes")
    assert mikrom("orphans").stdout == "No orphans.\n"
    for record in ("vms/web-000/record.json", "copies/web-000.json"):
        (folder / "state" / record).unlink()
    write_specs(folder, WEB % 2)
    found = json.loads(mikrom("orphans", "-o", "json").stdout)["orphans"]
    assert [(orphan["kind"], orphan["vm"]) for orphan in found] == [("no record", "web-000"), ("no spec", "web-002")]

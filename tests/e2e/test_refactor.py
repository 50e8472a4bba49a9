"""A Refactor document as a person applies it: nothing is restarted, and the plan after it is empty."""

from __future__ import annotations

from pathlib import Path

from tests.command import WEB, Mikrom, document, write_specs

REFACTOR = "---\napiVersion: mikrom/v1\nkind: Refactor\nmetadata: {name: july}\nspec: {%s}\n"
PROJECT = WEB.partition("---")[0]
WWW = WEB.replace("name: web", "name: www")


def pids(mikrom: Mikrom) -> dict[str, int]:
    return {vm["name"]: vm["pid"] for vm in document("vms", mikrom("get", "vms", "-o", "json"))["vms"]}


def test_a_fleet_is_renamed_let_go_and_taken_over_in_the_same_processes(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, WEB % 3)
    mikrom("apply", "--yes")
    before = pids(mikrom)

    write_specs(folder, WWW % 3 + REFACTOR % "moved: [{from: web, to: www}]")
    mikrom("validate")
    plan = document("plan", mikrom("plan", "-o", "json"))
    assert (plan["summary"]["rename"], len(plan["changes"])) == (3, 3)
    for name in ("web-000", "www-000"):
        said = mikrom("explain", name).stdout
        assert ("running on localhost" in said, "rename on localhost" in said) == (True, True), said
    assert "~ rename   www-[000-002] on localhost: moved from web-*" in mikrom("apply", "--yes").stdout
    assert pids(mikrom) == {name.replace("web", "www"): pid for name, pid in before.items()}
    assert "Nothing to change: 3 VMs" in mikrom("plan").stdout
    assert "MIKROM-UP" in mikrom("logs", "www-000").stdout

    write_specs(folder, PROJECT + REFACTOR % "removed: [{from: www, destroy: false}]")
    assert "3 to forget" in mikrom("apply", "--yes").stdout
    assert "Nothing to change" in mikrom("plan").stdout
    assert sorted(pids(mikrom).values()) == sorted(before.values())
    assert mikrom("orphans").stdout.count("let go") == 4, "each VM, and what to do"

    assert "it was let go" in mikrom("explain", "www-000").stdout
    assert "past the specs" not in mikrom("pause", "www-001").stdout
    assert "past the specs" not in mikrom("resume", "www-001").stdout

    write_specs(folder, WWW % 3)
    assert "import: [{to: www-000}]" in mikrom("plan", code=8).stdout
    write_specs(folder, WWW % 3 + REFACTOR % "import: [{to: www}]")
    assert "3 to import" in mikrom("apply", "--yes").stdout
    assert "Nothing to change: 3 VMs" in mikrom("plan").stdout
    assert sorted(pids(mikrom).values()) == sorted(before.values())

    write_specs(folder, PROJECT + REFACTOR % "removed: [{from: www, destroy: true}]")
    mikrom("apply", "--yes")
    assert pids(mikrom) == {}


def test_a_mistake_is_told_with_its_place_and_what_to_write(mikrom: Mikrom, folder: Path) -> None:
    write_specs(folder, WEB % 3 + REFACTOR % "moved: [{from: web, to: www}]")
    assert "web is still in the specs" in mikrom("validate", code=1).stderr

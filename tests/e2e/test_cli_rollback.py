"""What was applied is kept, is shown, and comes back: `history --revisions`, `plan --at`, `rollback`."""

from __future__ import annotations

from pathlib import Path

from tests.command import WEB, Mikrom, document, write_specs


def changed(folder: Path, mikrom: Mikrom, mem_size_mib: int) -> None:
    write_specs(folder, (WEB % 2).replace("16", str(mem_size_mib)))
    mikrom("apply", "--yes")


def test_a_revision_is_shown_with_the_fields_that_it_changed(folder: Path, mikrom: Mikrom) -> None:
    changed(folder, mikrom, 16)
    changed(folder, mikrom, 32)
    changed(folder, mikrom, 32)
    first, *_ = document("revisions", mikrom("history", "--revisions", "-o", "json"))["revisions"]
    assert (first["number"], first["converged"], first["held"]) == (2, True, False)
    assert first["run"]["conclusion"].endswith("2 restarted; all is as specified.")
    told = document("revisions", mikrom("history", "2", "-o", "json"))
    assert [deed["fields"][0]["before"] for deed in told["runs"][0]["outcomes"]] == [16, 16]
    assert "machine.mem_size_mib: 16 → 32" in mikrom("history", "demo/2").stdout
    lines = mikrom("history", "--revisions", "demo").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["REV", "demo/2", "demo/1"]
    assert "nothing is called '3'" in mikrom("history", "3", code=64).stderr
    unknown = mikrom("history", "--revisions", "3", code=64).stderr
    assert "there is no revision 3; `mikrom history --revisions` lists those that are kept" in unknown


def test_a_rollback_brings_back_what_converged_before_and_every_plan_says_so(folder: Path, mikrom: Mikrom) -> None:
    assert "there is no earlier revision that converged" in mikrom("rollback", "--yes", code=64).stderr
    changed(folder, mikrom, 16)
    changed(folder, mikrom, 32)
    planned = document("plan", mikrom("plan", "--at", "1", "-o", "json"))
    assert planned["warnings"][0].startswith("this goes back to revision 1: then Beat leaves project demo alone")
    assert "leave out specs" in mikrom("plan", "specs", "--at", "1", code=64).stderr
    assert "there is no terminal to ask on" in mikrom("rollback", code=64).stderr
    assert "2 restarted" in mikrom("rollback", "--yes").stdout
    assert "project demo is rolled back to revision 1: Beat leaves it alone" in mikrom("plan").stdout
    assert "project demo is rolled back to revision 1" in mikrom("status").stderr
    assert "Goes back to 1." in mikrom("history", "--revisions").stdout
    mikrom("apply", "--yes", "--limit", "web-000")
    assert "project demo is rolled back" in mikrom("plan").stdout, "of a part that was applied it is still true"
    assert mikrom("rollback", "--resume").stdout == "No longer held: demo.\n"
    assert "rolled back" not in mikrom("plan").stdout


def test_a_rollback_that_was_refused_goes_on_where_it_was_to_lead(folder: Path, mikrom: Mikrom) -> None:
    changed(folder, mikrom, 16)
    write_specs(folder, WEB % 12)
    mikrom("apply", "--yes")
    assert "10 VMs refused" in mikrom("rollback", "--yes", code=8).stdout
    assert "rolled back" not in mikrom("plan", code=0).stdout, "nothing was done"
    write_specs(folder, (WEB % 12).replace("16", "32"))
    mikrom("apply", "--yes")
    assert "10 VMs refused" in mikrom("rollback", "--to", "1", "--yes", code=8).stdout
    assert "rolled back to revision 1" in mikrom("plan").stdout, "two were restarted"
    assert "give one of them" in mikrom("rollback", "--to", "1", "--resume", code=64).stderr
    assert "10 deleted" in mikrom("rollback", "--yes", "--prune-max", "100%").stdout
    (last, *_) = document("revisions", mikrom("history", "--revisions", "-o", "json"))["revisions"]
    assert (last["number"], last["restores"], last["converged"]) == (4, 1, True)


def test_a_saved_plan_of_an_earlier_revision_goes_back_to_it(folder: Path, mikrom: Mikrom) -> None:
    changed(folder, mikrom, 16)
    changed(folder, mikrom, 32)
    mikrom("plan", "--at", "1", "--out", "back.json")
    mikrom("apply", "back.json", "--yes")
    (current, *_) = document("revisions", mikrom("history", "--revisions", "-o", "json"))["revisions"]
    assert (current["restores"], current["held"], current["converged"]) == (1, True, True)

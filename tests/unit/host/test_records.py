"""Records as they are found after accidents, edits and newer releases: always named, never absent by mistake."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Policy
from mikrom_reconcile.core.model.errors import PermanentError, SetupError, TemporaryError
from mikrom_reconcile.core.model.observed import Attempt
from mikrom_reconcile.host import json_folder, records as module
from mikrom_reconcile.host.ports import VMRecord
from mikrom_reconcile.host.records import Records, UnreadableRecord
from mikrom_reconcile.system import locks
from mikrom_reconcile.system.processes import boot_id
from mikrom_reconcile.times_and_sizes import RECORDS
from tests.fakes import SPEC, HeldClock


def record_of(vm: str = "web-000", generation: int = 1) -> VMRecord:
    return VMRecord(
        vm=vm, uid="0123456789abcdef", project="shop", fleet="web", state="running", spec=SPEC, policy=Policy(),
        spec_digest="1:aa", generation=generation, token=7, action_id="1:bb", created_at=HeldClock().now(),
        boot_id=boot_id(),
    )  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def records(state: Path) -> Records:
    return Records(state)


def reason(found: object) -> str:
    assert isinstance(found, UnreadableRecord), found
    return found.reason


def test_a_record_is_read_as_it_was_written(records: Records) -> None:
    records.write(record_of())
    assert records.read("web-000") == record_of()
    records.write(record_of(generation=2))
    assert records.read("web-000") == record_of(generation=2)
    assert list(records.list()) == [record_of(generation=2)]


def test_what_was_never_written_is_absent(records: Records, state: Path) -> None:
    assert records.read("web-000") is None
    assert list(records.list()) == []
    assert not state.exists(), "reading made a folder"


def test_files_and_folders_are_closed_to_others(records: Records, state: Path) -> None:
    records.write(record_of())
    with records.lock("web-000"):
        records.advance_token("shop", 7)
    records.remove(record_of())
    records.write(record_of())
    for path in (state, *state.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_torn_record_without_a_copy_is_unreadable_at_whatever_byte_it_ends(records: Records, state: Path) -> None:
    records.write(record_of())
    (state / "copies/web-000.json").unlink()
    path = state / "vms/web-000/record.json"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert "record.json" in reason(records.read("web-000"))
        assert [type(found) for found in records.list()] == [UnreadableRecord]


def test_an_edited_record_without_a_copy_is_unreadable(records: Records, state: Path) -> None:
    records.write(record_of())
    (state / "copies/web-000.json").unlink()
    path = state / "vms/web-000/record.json"
    path.write_text(path.read_text().replace('"project":"shop"', '"project":"mine"'))
    assert "checksum" in reason(records.read("web-000"))


def test_a_record_of_a_newer_release_is_unreadable_and_says_so(records: Records, state: Path) -> None:
    records.write(record_of())
    (state / "copies/web-000.json").unlink()
    path = state / "vms/web-000/record.json"
    path.write_text(json.dumps({"format_version": 2, "body": "whatever comes"}))
    assert "newer mikrom" in reason(records.read("web-000"))


@pytest.mark.parametrize("damage", ["deleted", "its folder deleted", "edited", "torn"])
def test_a_record_that_somebody_spoilt_is_read_from_its_copy_and_put_right_by_the_next_write(
    records: Records, state: Path, damage: str
) -> None:
    records.write(record_of())
    path = state / "vms/web-000/record.json"
    if damage.endswith("deleted"):
        path.unlink()
    if damage == "its folder deleted":
        path.parent.rmdir()
    if damage == "edited":
        path.write_text(path.read_text().replace('"project":"shop"', '"project":"mine"'))
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    (found,) = records.list()
    assert isinstance(found, VMRecord)
    assert replace(found, damage="") == record_of()
    assert str(path) in found.damage
    records.write(found)
    assert records.read("web-000") == record_of()
    records.remove(record_of())
    assert list(records.list()) == []


def test_a_record_in_anothers_folder_is_unreadable(records: Records, state: Path) -> None:
    records.write(record_of())
    (state / "vms/web-000").rename(state / "vms/web-001")
    assert "record of web-000" in reason(records.read("web-001"))


def test_until_its_record_has_its_new_name_a_vm_is_found_by_its_former_one(records: Records, state: Path) -> None:
    """Somebody was killed once the link to the new name was made; later, somebody removes that."""
    before = record_of()
    records.write(before)
    (state / "names").mkdir()
    (state / "names/www-000").symlink_to("web-000")
    assert (records.read("web-000"), records.read("www-000")) == (before, None)
    after = replace(before, vm="www-000", made_as="web-000")
    records.rename(after, "web-000")
    assert (records.read("web-000"), records.read("www-000")) == (None, after)
    (state / "vms/web-000/record.json").unlink()  # its copy tells that the folder is taken all the same
    assert records.new_home("web-000").startswith("web-000-")
    records.write(after)
    (state / "names/www-000").unlink()
    assert list(records.list()) == [after]
    assert records.read("www-000") == after


def test_a_new_vm_takes_over_no_link_to_anothers_folder(records: Records, state: Path) -> None:
    before, new = record_of(), record_of("www-000")
    records.write(before)
    (state / "names").mkdir()
    (state / "names/www-000").symlink_to("web-000")
    records.write(new)
    assert list(records.list()) == [before, new]
    assert records.read("www-000") == new
    assert records.new_home("www-000").startswith("www-000-")
    assert records.new_home("www-001") == ""


def test_a_renamed_vm_whose_record_cannot_be_read_has_its_new_name(records: Records, state: Path) -> None:
    records.write(record_of())
    records.rename(replace(record_of(), vm="www-000", made_as="web-000"), "web-000")
    for torn in ("vms/web-000/record.json", "copies/web-000.json"):
        (state / torn).write_text("torn")
    [found] = records.list()
    assert (found.vm, records.read("www-000"), records.names()) == ("www-000", found, ("web-000", "www-000"))


def test_a_sound_envelope_around_something_else_is_unreadable(records: Records, state: Path) -> None:
    content = b'{"vm": "web-000"}'
    (state / "vms/web-000").mkdir(parents=True)
    envelope = {"format_version": 1, "checksum": json_folder._checksum(content), "record": msgspec.Raw(content)}
    (state / "vms/web-000/record.json").write_bytes(msgspec.json.encode(envelope))
    assert "no record" in reason(records.read("web-000"))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(RECORDS.record_bytes + 1)


def make_deep(path: Path) -> None:
    path.write_bytes(b'{"format_version":1,"record":' + b"[" * 500_000)


@pytest.mark.parametrize("make", [Path.mkdir, make_fifo, make_loop, make_link, make_giant, make_deep])
def test_odd_things_in_a_records_place_are_unreadable(records: Records, state: Path, make: object) -> None:
    (state / "vms/web-000").mkdir(parents=True)
    assert callable(make)
    make(state / "vms/web-000/record.json")
    assert "record.json" in reason(records.read("web-000"))


def test_a_file_in_a_vms_place_is_unreadable(records: Records, state: Path) -> None:
    (state / "vms").mkdir(parents=True)
    (state / "vms/web-000").touch()
    assert "Not a directory" in reason(records.read("web-000"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(content=st.binary(max_size=400))
def test_whatever_stands_in_the_file_reading_it_never_fails(records: Records, state: Path, content: bytes) -> None:
    (state / "vms/web-000").mkdir(parents=True, exist_ok=True)
    (state / "vms/web-000/record.json").write_bytes(content)
    assert isinstance(records.read("web-000"), UnreadableRecord)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(place=st.integers(0, 2000), byte=st.integers(0, 255))
def test_one_changed_byte_is_noticed_or_harmless(records: Records, state: Path, place: int, byte: int) -> None:
    records.write(record_of())
    (state / "copies/web-000.json").unlink()
    path = state / "vms/web-000/record.json"
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    found = records.read("web-000")
    assert found == record_of() or isinstance(found, UnreadableRecord)


def test_a_folder_without_a_record_is_no_vm(records: Records, state: Path) -> None:
    (state / "vms/web-000").mkdir(parents=True)
    (state / "vms/web-000/record.json.new").write_text("half")
    assert list(records.list()) == []
    records.clear("web-000")
    assert list((state / "vms").iterdir()) == []


def test_a_sweep_clears_what_killed_writers_left_and_nothing_else(records: Records, state: Path) -> None:
    records.write(record_of())
    for name in ("half", "held", "with-a-console"):
        (state / "vms" / name).mkdir()
        (state / "vms" / name / "record.json.new").write_text("half")
    (state / "vms/with-a-console/console.log").write_text("of a VM whose record somebody moved away")
    with records.lock("held"):
        records.sweep()
    assert sorted(path.name for path in (state / "vms").iterdir()) == ["held", "web-000", "with-a-console"]
    assert (state / "vms/held/record.json.new").exists()
    assert (state / "vms/with-a-console/console.log").exists()
    assert records.read("web-000") == record_of()


def test_an_unreadable_folder_of_records_is_an_error_and_not_an_empty_host(records: Records, state: Path) -> None:
    state.mkdir()
    (state / "vms").write_text("not a folder")
    with pytest.raises(SetupError, match="cannot read"):
        list(records.list())


def test_removal_leaves_a_tombstone_and_nothing_else(records: Records, state: Path) -> None:
    records.write(record_of(generation=5))
    records.remove(record_of(generation=5))
    assert records.read("web-000") is None
    assert records.tombstone("web-000") == record_of(generation=5)
    assert list((state / "vms").iterdir()) == []
    records.remove(record_of(generation=5))  # killed before it could say that it was done
    assert records.tombstone("web-000") == record_of(generation=5)


def test_a_damaged_tombstone_is_none(records: Records, state: Path) -> None:
    (state / "tombstones").mkdir(parents=True)
    for content in ("", "[]", '{"generation":'):
        (state / "tombstones/web-000.json").write_text(content)
        assert records.tombstone("web-000") is None


def test_old_tombstones_go_in_time(records: Records, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORDS", replace(RECORDS, removals_per_sweep=1))
    for vm in ("old-000", "young-000"):
        records.write(record_of(vm))
        records.remove(record_of(vm))
    long_ago = time.time() - RECORDS.tombstone_s - 1
    os.utime(state / "tombstones/old-000.json", (long_ago, long_ago))
    records.remove(record_of("another-000"))
    assert {path.stem for path in (state / "tombstones").iterdir()} == {"young-000", "another-000"}


def test_attempts_that_cannot_be_read_are_as_if_they_had_not_been(records: Records, state: Path) -> None:
    records.note_attempt("web-000", Attempt(spec_digest="1:aa", count=2))
    for vm, content in (("web-001", ""), ("web-002", "[]")):
        (state / f"attempts/{vm}.json").write_text(content)
    (state / "attempts/web-003.json").mkdir()
    assert records.attempts() == {"web-000": Attempt(spec_digest="1:aa", count=2)}
    with pytest.raises(TemporaryError, match="cannot write"):
        records.note_attempt("web-003", Attempt(spec_digest="1:aa", count=1))


def test_the_highest_token_never_falls(records: Records, state: Path) -> None:
    assert records.highest_token("shop") == 0
    for token in (3, 12, 9, 12, 1):
        records.advance_token("shop", token)
    assert records.highest_token("shop") == 12
    records.advance_token("blog", 4)
    assert records.highest_tokens() == {"blog": 4, "shop": 12}
    assert len(list((state / "tokens/shop").iterdir())) <= 2, "tokens pile up"


def test_tokens_raised_at_the_same_time_are_all_seen(records: Records) -> None:
    def raise_some(first: int) -> None:
        for token in range(first, 400, 8):
            records.advance_token("shop", token)
            assert records.highest_token("shop") >= token

    threads = [threading.Thread(target=raise_some, args=(first,)) for first in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records.highest_token("shop") == 399


def test_the_action_lock_is_refused_at_once_while_somebody_holds_it(records: Records, state: Path) -> None:
    with records.lock("web-000"):
        began_s = time.monotonic()
        with pytest.raises(TemporaryError, match="another order is at work"), records.lock("web-000"):
            pass
        assert time.monotonic() - began_s < 10
        with Records(state).lock("web-001"):
            pass
    with records.lock("web-000"):
        pass


def test_lock_files_go_with_what_they_are_for(records: Records, state: Path) -> None:
    with records.lock("web-000"):
        records.write(record_of())
    for kept in ("web-000.vmm", "left-000.vmm", "left-000.action", "shop.lease", "worker"):
        (state / "locks" / kept).touch()
    held = locks.open_taken(state / "locks/stray-000.vmm")
    assert held is not None
    records.sweep()
    assert {path.name for path in (state / "locks").iterdir()} == {
        "actions", "web-000.vmm", "shop.lease", "worker", "stray-000.vmm",
    }  # fmt: skip
    locks.give_back(held)


def test_of_two_who_want_a_lock_whose_file_goes_one_has_it(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "lock", 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            while (fd := locks.open_taken(path)) is None:
                assert locks.is_taken(path) in {True, False}
            inside += 1
            most = max(most, inside)
            inside -= 1
            locks.give_back(fd, unlink=path)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not path.exists()


def test_a_lock_that_the_system_cannot_give_is_told_and_leaves_no_descriptor(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_control", refuse)
    with pytest.raises(TemporaryError, match="No locks available"), records.lock("web-000"):
        pass
    # by name, not by number: what tests before left to the garbage is closed whenever it is collected
    assert "actions" not in {fd.resolve().name for fd in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "-a", "a-", "a" * 49, "a\n", "é"])
def test_a_name_that_leads_elsewhere_is_refused(records: Records, name: str) -> None:
    for act in (records.read, records.tombstone, records.clear, records.highest_token):
        with pytest.raises(PermanentError, match="no VM or project has such a name"):
            act(name)
    with pytest.raises(PermanentError), records.lock(name):
        pass
    with pytest.raises(PermanentError):
        records.write(msgspec.structs.replace(record_of(), vm=name))


def test_a_reader_never_sees_half_a_write(records: Records) -> None:
    records.write(record_of())
    stop = threading.Event()

    def write() -> None:
        for generation in range(2, 200):
            records.write(record_of(generation=generation))
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not stop.is_set():
        assert isinstance(records.read("web-000"), VMRecord)
    writer.join()


def test_a_state_folder_that_somebody_makes_while_another_looks_for_it_was_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, real_stat = Records(tmp_path / "state"), os.stat

    def stat_too_early(path: Any, **kwargs: Any) -> os.stat_result:
        if path != mine.state_dir:
            return real_stat(path, **kwargs)
        monkeypatch.undo()
        mine.state_dir.mkdir()
        mine.names()  # another thread, which finds the folder
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "stat", stat_too_early)
    assert mine.names() == ()
    mine.state_dir.rename(tmp_path / "away")
    with pytest.raises(SetupError, match="moved away"):
        mine.names()

"""What the Firecracker driver makes of texts and files, without a Firecracker."""

from __future__ import annotations

import errno
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mikrom_reconcile.core.model.errors import ActionError, PermanentError, SetupError, TemporaryError
from mikrom_reconcile.core.model.observed import End
from mikrom_reconcile.host.drivers.firecracker import FirecrackerDriver, end_in
from mikrom_reconcile.host.drivers.select import find, version_of
from mikrom_reconcile.host.drivers.vmm import StateLayout
from mikrom_reconcile.host.errors import FaultError, NoAnswerError, translate_errors
from mikrom_reconcile.host.orders.next_record import next_record
from tests.fakes import order


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (FaultError("Boot source error: The kernel file cannot be opened: No such file (os error 2)"), PermanentError),
        (FaultError("Start microvm error: Cannot load kernel: Invalid Elf magic number."), PermanentError),
        (FaultError("Network config error: Resource busy (os error 16). Invalid TUN/TAP Backend"), TemporaryError),
        (FaultError("Cannot create guest memory: Cannot allocate memory (os error 12)"), TemporaryError),
        (FaultError("Error creating vm: Resource temporarily unavailable (os error 11)"), TemporaryError),
        (FaultError("Error creating KVM object: Permission denied (os error 13)"), PermanentError),
        (FaultError("something (os error 110)"), TemporaryError),
        (FaultError("something (os error 1)"), PermanentError),
        (NoAnswerError("it did not answer in time"), TemporaryError),
        (OSError(errno.ENOSPC, "No space left on device"), TemporaryError),
        (OSError(errno.EMFILE, "Too many open files"), TemporaryError),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), TemporaryError),
        (OSError(errno.EACCES, "Permission denied", "/var/lib/mikrom"), PermanentError),
        (OSError(errno.EROFS, "Read-only file system"), PermanentError),
    ],
)
def test_what_may_pass_is_temporary_and_what_must_be_mended_is_permanent(
    cause: Exception, kind: type[ActionError]
) -> None:
    with (
        pytest.raises(ActionError, match=r"^a: .*\(while starting the guest\)$") as raised,
        translate_errors("a", "starting the guest"),
    ):
        raise cause
    assert type(raised.value) is kind
    assert raised.value.step == "starting the guest"


def line(reset_count: int = 0, failures: int = 0, *, at_s: float | None = None) -> bytes:
    counters: dict[str, object] = {"i8042": {"reset_count": reset_count}, "vcpu": {"failures": failures}}
    if at_s is not None:
        counters["utc_timestamp_ms"] = int(1_795_941_248_000 + at_s * 1000)
    return json.dumps(counters).encode() + b"\n" * (at_s is not None)


@pytest.mark.parametrize(
    ("content", "end"),
    [
        (None, "killed"),
        (b"", "killed"),
        (line() + b"\n", "killed"),
        (line() + b"\n" + line(reset_count=1) + b"\n", "clean"),
        (line() + b"\n" + line(failures=1) + b"\n", "crashed"),
        (line(reset_count=1) + b"\n" + line() + b"\n", "clean"),
        (b"\0" * 50_000 + line(reset_count=1) + b"\n", "clean"),
        (line() + b"\n" + line(reset_count=1)[:-5], "killed"),
        (b"[]\n{}\nnull\n\xff\n" + line(failures=2), "crashed"),
        (b'{"i8042": 5}\n', "killed"),
        (line(at_s=0), "killed"),
        (line(at_s=0) + line(at_s=60.1) + line(at_s=119.9), "killed"),
        (line(at_s=0) + line(at_s=60) + line(at_s=75), "crashed"),
        (line(at_s=0) + line(reset_count=1, at_s=1), "clean"),
        (line(at_s=0) + line(at_s=20) + line(at_s=80), "killed"),
        (line(at_s=9) + line(at_s=0), "killed"),
    ],
)
def test_the_end_is_read_from_the_metrics_whatever_state_they_are_in(
    tmp_path: Path, content: bytes | None, end: End
) -> None:
    metrics = tmp_path / "metrics"
    if content is not None:
        metrics.write_bytes(content)
    assert end_in(metrics) == end


def program(path: Path, text: str = "#!/bin/sh\necho Firecracker v9\necho more\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_firecracker_is_the_named_one_or_on_path_or_below_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/nope")
    assert find("firecracker", None, tmp_path) is None
    fetched = program(tmp_path / "state/bin/firecracker")
    assert find("firecracker", None, tmp_path / "state") == fetched
    installed = program(tmp_path / "bin/firecracker")
    assert find("firecracker", None, tmp_path / "state") == installed
    named = program(tmp_path / "fc")
    assert find("firecracker", str(named), tmp_path / "state") == named
    assert version_of(named) == "Firecracker v9"


def test_a_named_one_that_is_no_program_is_an_error_that_says_so(tmp_path: Path) -> None:
    program(tmp_path / "bin/firecracker")
    with pytest.raises(SetupError, match="MIKROM_FIRECRACKER=/nope is not a program"):
        find("firecracker", "/nope", tmp_path)


def test_a_binary_that_does_not_run_has_no_version(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is it a Firecracker for this machine"):
        version_of(program(tmp_path / "fc", "#!/bin/sh\nexit 3\n"))
    with pytest.raises(SetupError):
        version_of(tmp_path / "nope")


def test_a_delete_names_what_it_could_not_remove_and_goes_on_from_there(own_environment: Path) -> None:
    driver = FirecrackerDriver(Path("/bin/false"), state_dir=own_environment / "state", run_dir=own_environment / "run")
    places = StateLayout(own_environment / "state", own_environment / "run").of("web-000")
    for folder in (places.folder, places.run_folder):
        folder.mkdir(parents=True)
    socket, first, *others = places.files()
    (first / "in-the-way").mkdir(parents=True)
    for path in (socket, *others):
        path.touch()
    record = next_record(order("create", "web-000"), None, tombstone=None, now=datetime.now(UTC))
    with pytest.raises(PermanentError, match=f"{first}: "):
        driver.delete(record)
    shutil.rmtree(first)
    driver.delete(record)
    assert list(own_environment.rglob("web-000*")) == []

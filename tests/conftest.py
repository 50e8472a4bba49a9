"""What every test gets: folders of its own, no setting of this machine, and a word about what cannot run."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scratch import SCRATCH

BACKGROUND = ("lease ", "heartbeat", "answers", "supervise")
"""How the threads of mikrom are named that may do something when nobody is looking."""

KEPT_VARIABLES = ("MIKROM_FIRECRACKER", "MIKROM_FIRECRACKERS", "MIKROM_JAILER", "MIKROM_GUEST_ELF")
FOREIGN_PREFIXES = ("MIKROM_", "CELERY_", "FLOWER_", "PYTHONUNBUFFERED")

SKIPPED = pytest.StashKey[str]()

# A shell that starts its jobs in the background has them ignore Ctrl-C, and nohup SIGHUP. Programs inherit that, but no
# handler: so what a test starts can be ended by a signal wherever the tests were started from.
for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, lambda *_: None)


def pytest_configure(config: pytest.Config) -> None:
    """Set up Hypothesis, unless this run goes without it: to import it takes long on an emulated host."""
    if config.pluginmanager.hasplugin("hypothesispytest"):
        import hypothesis  # noqa: PLC0415 - see above

        # No deadline: on a loaded machine it says nothing about the code. In CI the next run must find the same.
        hypothesis.settings.register_profile("mikrom", deadline=None, derandomize="CI" in os.environ, print_blob=True)
        hypothesis.settings.load_profile("mikrom")


def found_firecracker() -> str | None:
    named = os.environ.get("MIKROM_FIRECRACKER") or next(iter(firecrackers()), None) or shutil.which("firecracker")
    return named or shutil.which("firecracker", path="/var/lib/mikrom/bin")


def firecrackers() -> list[str]:
    """The binaries that the contract suite goes over; none if it is run with the usual one."""
    return [path for path in os.environ.get("MIKROM_FIRECRACKERS", "").split(":") if path]


def why_no_microvms() -> str:
    """Empty where real microVMs can run."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is missing or closed to this user"
    if found_firecracker() is None:
        return "no firecracker in MIKROM_FIRECRACKER, PATH or /var/lib/mikrom/bin (`make test` fetches it)"
    return ""


@pytest.hookimpl(trylast=True)  # after the shuffling
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("first") is None)  # the rest stays in its order
    told = []
    for marker, what, reason in (("kvm", "real", why_no_microvms()), ("jail", "jailed", why_no_jail())):
        needing = [item for item in items if item.get_closest_marker(marker)]
        if reason and needing:
            told.append(f"{len(needing)} tests of {what} microVMs were skipped: {reason}")
            for item in needing:
                item.add_marker(pytest.mark.skip(reason=reason))
    if told:
        config.stash[SKIPPED] = "\n".join(told)


def why_no_jail() -> str:
    """Empty where VMMs can be jailed."""
    if os.geteuid() != 0:
        return "not root, which the jailer has to be"
    if (binary := found_firecracker()) and not Path(binary).with_name("jailer").exists():
        return f"no jailer beside {binary}"
    return ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of programs that this machine may lack; the summary of pytest names each that was skipped, and why."""
    named = {program for marker in item.iter_markers("needs") for program in marker.args}
    if missing := sorted(program for program in named if shutil.which(program) is None):
        pytest.skip(f"not installed here: {', '.join(missing)}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if SKIPPED in config.stash:
        terminalreporter.write_line(config.stash[SKIPPED], yellow=True)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds this test's state and sockets; short, since a socket path has at most 107 bytes."""
    binary = found_firecracker()
    for name in os.environ:
        if name.startswith(FOREIGN_PREFIXES) and name not in KEPT_VARIABLES:
            monkeypatch.delenv(name)
    if binary is not None:
        monkeypatch.setenv("MIKROM_FIRECRACKER", binary)
    with tempfile.TemporaryDirectory(prefix="mk-", dir=SCRATCH) as folder:
        monkeypatch.setenv("MIKROM_STATE_DIR", f"{folder}/state")
        monkeypatch.setenv("MIKROM_RUN_DIR", f"{folder}/run")
        yield Path(folder)
        # before the folder goes, and with it what they use
        for thread in threading.enumerate():
            if thread.name.startswith(BACKGROUND):
                thread.join(10)
                assert not thread.is_alive(), f"{thread.name} outlives its test"

"""`mikrom` with hosts whose reports lie in files: everything that a process of the control side does, but no host.

    python -m benchmarks.replay FOLDER plan FOLDER/specs

It is the same code from the command line to the plan on stdout, with the reports read and decoded as they arrive over
Redis. What is not in it: the hosts' own work, the network, and the broker.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from mikrom_reconcile import wiring
from mikrom_reconcile.__main__ import main
from mikrom_reconcile.control.ports import Engine
from mikrom_reconcile.core.model.observed import HostReport, HostView, ObserveQuery
from mikrom_reconcile.settings import Settings


class ReplayedHosts:
    """`Hosts`, as far as a plan asks them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        """The hosts that have a report; none is unreachable."""
        del unreachable
        return tuple(sorted(file.name for file in self._folder.iterdir()))

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        """Each queried host's report; the question is encoded as if it were sent."""
        del deadline_s
        decode = msgspec.json.Decoder(HostReport).decode
        for host, query in queries.items():
            msgspec.json.encode(query)
            yield HostView(host=host, report=decode((self._folder / host).read_bytes()))


def replayed_engine(folder: Path, settings: Settings) -> Engine:
    """The engine of this process over the hosts in `folder`."""
    from mikrom_reconcile.control.stores.files import FileStore  # noqa: PLC0415 - as in wiring

    store = FileStore(settings.state_dir / "store", settings.state_dir / "locks")
    return wiring.make_reconciler(settings, ReplayedHosts(folder), store)  # type: ignore[arg-type]


if __name__ == "__main__":
    reports = Path(sys.argv[1]) / "reports"
    wiring.open_engine = lambda settings: replayed_engine(reports, settings)
    sys.exit(main(sys.argv[2:]))

"""What a run needs from outside."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import msgspec

from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.encoding import decoded
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.core.model.observed import Console, HostView, ObserveQuery, Placements
from mikrom_reconcile.core.model.plan import ActionOutcome, Order, Plan, RunRecord, RunReport, RunRequest, UnfinishedRun

_NO_CONTROL = "{} needs a control worker: set MIKROM_BROKER_URL, or start `mikrom up`"


class Hosts(Protocol):
    """The hypervisor hosts, in this process or over Celery: one contract."""

    def names(self, *, unreachable: bool = True) -> tuple[str, ...]:
        """The hosts that are known without specs, sorted, `unreachable` ones included or not."""

    def give_up(self, hosts: Iterable[str]) -> None:
        """Free the names of these hosts; machines that come back stop what they run. Raises SetupError."""

    def observe(self, queries: Mapping[str, ObserveQuery], *, deadline_s: float) -> Iterator[HostView]:
        """One view per queried host, as they come; a host that has not answered by the deadline is unreachable."""

    def execute(self, orders: Iterable[Order], *, forks: int, deadline_s: float) -> Iterator[ActionOutcome]:
        """One outcome per order, as they come, at most `forks` at once per host; `failed_temporary` of a lost host."""

    def console(self, host: str, vm: str, *, max_bytes: int, after: int | None = None) -> Console:
        """The end of a VM's serial console, or of what came `after` a place in it. Raises MikromError."""


class Lease(Protocol):
    """The right to change a project. `token` fences its earlier holders."""

    token: int

    def held(self) -> bool:
        """False once it may have been lost: send nothing more."""

    def release(self) -> None:
        """Give it back; twice is fine."""


class RunStore(Protocol):
    """Memory between runs. Everything in it may be lost without harm."""

    def lease(self, scope: str, *, holder: str, ttl_s: float, at_least: int) -> Lease:
        """Take the lease of a project, with a token of at least `at_least`. Raises BusyError naming the holder."""

    def placements(self, project: str) -> Placements:
        """Where the project's VMs were last known to be; empty when nothing is remembered."""
        return decoded(self.get("placements", project), Placements) or Placements()

    def remember(self, project: str, placements: Placements) -> None:
        """Replace the placements of a project. Only the holder of the project's lease calls it."""
        self.put("placements", project, msgspec.json.encode(placements))

    def save(self, run: RunRecord) -> None:
        """Keep a run as far as it is, instead of what was saved of it before; see `run_log.ROOM` for how long."""

    def runs(self, limit: int) -> tuple[RunRecord, ...]:
        """The latest runs, newest first; those that another release wrote say so."""

    def put(self, shelf: str, name: str, content: bytes | None) -> None:
        """Keep `content` under a name on a shelf, instead of what was there; None takes it away."""

    def get(self, shelf: str, name: str) -> bytes | None:
        """What is kept under this name; None if nothing is."""

    def shelf(self, shelf: str) -> list[bytes]:
        """Everything that is kept on a shelf, in any order."""


class Engine(Protocol):
    """What the command line and Beat drive: planning and applying here, or in a control worker far away. What only
    control workers have is as here for an engine that has none.
    """

    hosts: Hosts
    store: RunStore

    def source(self) -> SourceState | None:
        """The state of the source of scheduled runs when it was last read; None where there are none."""
        return None

    def accept(self, commit: str) -> str:
        """Have scheduled runs use a commit although its branch was forced; why they do not, "" if they do."""
        raise UsageError(f"{commit}: {_NO_CONTROL.format('accepting it')}")

    def unfinished(self) -> tuple[UnfinishedRun, ...]:
        """Runs that others carry out and that have no report, the latest first."""
        return ()

    def plan(self, request: RunRequest) -> Plan:
        """What the request would change. Changes nothing and takes no lease. Raises SpecError, SourceError."""

    def apply(self, request: RunRequest, plan: Plan | None, *, progress: Callable[[ActionOutcome], None]) -> RunReport:
        """Carry out `plan` in passes, verify, report: only what it shows, and only where nothing has changed since.
        None approves whatever is found. Raises BusyError when the lease is not free in time.
        """

    def hand_over(self, request: RunRequest, plan: Plan) -> None:  # noqa: ARG002
        """Have a control worker carry out `plan`, and leave. Raises UsageError where there is none."""
        raise UsageError(_NO_CONTROL.format("--no-wait"))

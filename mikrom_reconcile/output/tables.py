"""What hosts report: VMs and orphans, hosts, fleets, images, the status of all, what a name means; and revisions."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from mikrom_reconcile.core.model.documents import SourceState
from mikrom_reconcile.core.model.observed import SATISFIES, CachedFile, HostReport, HostView, ObservedVM
from mikrom_reconcile.core.model.plan import Revision, RunRecord, group_by
from mikrom_reconcile.core.placement.desired_state import ImageFile
from mikrom_reconcile.core.specs.images import is_container_image
from mikrom_reconcile.output import run_result as results, text
from mikrom_reconcile.times_and_sizes import OUTPUT


def vms_in(views: Iterable[HostView]) -> list[ObservedVM]:
    """Every VM that was reported, sorted by name and host."""
    return sorted((vm for view in views if view.report for vm in view.report.vms), key=lambda vm: (vm.name, vm.host))


_VMS = (
    *(text.Column(key, key.upper()) for key in ("name", "fleet", "host", "state")),
    text.Column("phase", "PHASE", cell=lambda vm: (vm.phase, "green" if vm.phase in SATISFIES[vm.state] else "red")),
    text.Column("image", "IMAGE", lambda vm: vm.spec.image),
    text.Column("vcpu_count", "VCPU", lambda vm: vm.spec.machine.vcpu_count),
    text.Column("mem_size_mib", "MEM", lambda vm: vm.spec.machine.mem_size_mib,
           cell=lambda vm: text.mebibytes(vm.spec.machine.mem_size_mib)),
    text.Column("pid", "PID"), text.Column("created_at", "AGE"), text.Column("uid"),
    text.Column("ip", value=lambda vm: next(iter(vm.addresses.values()), None)),
    text.Column("spec_digest"), text.Column("last_error"), text.Column("unmanaged"),
)  # fmt: skip
_PROJECT = text.Column("project", "PROJECT")
_ADDRESSES = text.Column("addresses", "ADDRESSES", cell=lambda vm: ", ".join(vm.addresses.values()) or "-")
_RESTARTS = text.Column("restarts", "RESTARTS", cell=lambda vm: str(len(vm.restarts)))
VMS = (*_VMS, _ADDRESSES, _RESTARTS)


def vm_row(vm: ObservedVM) -> text.Document:
    """A VM as its host sees it. `state` is what was last ordered, `ip` the first of `addresses` or null."""
    return text.row_document((_PROJECT, *VMS), vm)


def vms_text(vms: Sequence[ObservedVM], now: datetime, style: text.Style) -> str:
    """One line per VM, with the columns that tell something, then what went wrong with whom."""
    if not vms:
        return "No VMs.\n"
    columns = [
        *([_PROJECT] if len({vm.project for vm in vms}) > 1 else []),
        *_VMS,
        *([_ADDRESSES] if any(vm.addresses for vm in vms) else []),
        *([_RESTARTS] if any(vm.restarts for vm in vms) else []),
    ]
    errors = (f"{vm.name} on {vm.host}: {vm.last_error}" for vm in vms if vm.last_error)
    return text.row_table(columns, vms, style, now) + text.section("Last errors", errors, style, "red")


Kind = Literal["no record", "double", "let go", "no spec", "other project", "foreign"]

WHAT_NEXT: dict[Kind, str] = {
    "no record": "a VMM of this state folder that no record knows: restore its record, or kill the pid",
    "double": "a newer VM of this name is on another host: the next apply removes it once that one is well",
    "let go": "`removed` let it go: `import` takes it over, `mikrom delete` removes it",
    "no spec": "no spec wants it: the next apply removes it if the specs are the whole truth, `mikrom delete` at once",
    "other project": "it is left alone, and its name cannot be used",
    "foreign": "a VMM of another program or state folder: it is left alone, or `mikrom adopt` takes it over",
}


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. `vm` is "" for a process that does not say what it runs."""

    kind: Kind
    vm: str
    host: str
    project: str = ""
    pid: int | None = None


_ORPHANS = (
    text.Column("kind", "KIND"), text.Column("vm", "NAME"),
    *(text.Column(key, key.upper()) for key in ("project", "host", "pid")),
)  # fmt: skip


def orphans_in(views: Sequence[HostView], project: str | None, wanted: frozenset[str]) -> list[Orphan]:
    """All that the hosts reported, sorted. Without specs (`project` None) only processes and doubles can be judged."""
    reports, vms = [view.report for view in views if view.report], vms_in(views)
    readable = (vm for vm in reversed(vms) if vm.phase != "unreadable")
    newest = {(vm.project, vm.name): vm.host for vm in sorted(readable, key=lambda vm: vm.token)}
    found = [Orphan(kind="no record", vm=it.vm, host=on.host, pid=it.pid) for on in reports for it in on.strays]
    found += [Orphan(kind="foreign", vm=it.vm, host=on.host, pid=it.pid) for on in reports for it in on.foreign]
    for vm in vms:
        is_double = newest.get((vm.project, vm.name), vm.host) != vm.host
        if (kind := "double" if is_double else _kind(vm, project, wanted)) is not None:
            found.append(Orphan(kind=kind, vm=vm.name, host=vm.host, project=vm.project, pid=vm.pid))
    return sorted(found, key=lambda orphan: (list(WHAT_NEXT).index(orphan.kind), orphan.host, orphan.vm))


def _kind(vm: ObservedVM, project: str | None, wanted: frozenset[str]) -> Kind | None:
    if project is None or vm.phase == "unreadable":
        return None  # nobody can say whose it is; plan and get tell of it
    if vm.project != project:
        return "other project"
    return "let go" if vm.unmanaged else None if vm.name in wanted else "no spec"


def orphans_text(orphans: Sequence[Orphan], style: text.Style) -> str:
    """A table, and what each kind means. Ends with a line break."""
    if not orphans:
        return "No orphans.\n"
    kinds = [kind for kind in WHAT_NEXT if any(orphan.kind == kind for orphan in orphans)]
    notes = "".join(f"{kind}: {WHAT_NEXT[kind]}.\n" for kind in kinds)
    return f"{text.row_table(_ORPHANS, orphans, style)}\n{notes}"


GRACE = timedelta(minutes=1)  # after which a scheduled run that has not come does not come
FleetKey = tuple[str, str]  # project and fleet
Wanted = tuple[int, str]
"""How many VMs the specs want of a fleet, and where its rollout stands ("": nothing is rolled out)."""


def _count(key: str, title: str, count: Callable[[HostReport], int], show: Callable[[int], str] = str) -> text.Column:
    """A count of a host's report: 0 and "-" where there is none."""
    return text.Column(
        key,
        title,
        lambda view: count(view.report) if view.report else 0,
        lambda view: show(count(view.report)) if view.report else ("-", "dim"),
    )


HOSTS = (
    text.Column("host", "HOST"),
    _count("vcpu_count", "VCPU", lambda report: report.capacity.vcpu_count),
    _count("mem_size_mib", "MEM", lambda report: report.capacity.mem_size_mib, text.mebibytes),
    _count("vms", "VMS", lambda report: len(report.vms)),
    _count("running", "RUNNING", lambda report: sum(vm.phase == "running" for vm in report.vms)),
    text.Column("error", "", cell=lambda view: (view.error and f"could not be read: {view.error}", "red")),
)


def hosts_document(views: Iterable[HostView]) -> text.Document:
    """Every host: what it has in all and how many VMs; only `error` when it could not be read."""
    return {"hosts": [text.row_document(HOSTS, view) for view in views]}


class FleetStatus(msgspec.Struct, frozen=True):
    """How many VMs of a fleet the specs want (None: they do not name it), have a record, and run; and its rollout."""

    project: str
    fleet: str
    wanted: int | None
    vms: int
    running: int
    rollout: str = ""


FLEETS = (
    *(text.Column(key, key.upper()) for key in ("project", "fleet", "wanted", "vms")),
    text.Column("running", "RUNNING",
                cell=lambda row: (str(row.running), "green" if row.running == row.wanted else "yellow")),
    text.Column("rollout", "",
                cell=lambda row: (row.rollout, "red" if row.rollout in {"halted", "reverted"} else "yellow")),
)  # fmt: skip


def fleets_in(views: Iterable[HostView], wanted: Mapping[FleetKey, Wanted]) -> tuple[FleetStatus, ...]:
    """Every fleet that a host has or the specs want, sorted."""
    rows = vms_in(views)
    vms = Counter((vm.project, vm.fleet) for vm in rows)
    running = Counter((vm.project, vm.fleet) for vm in rows if vm.phase == "running")
    said = ((key, wanted.get(key, (None, ""))) for key in sorted({*vms, *wanted}))
    return tuple(FleetStatus(*key, count, vms[key], running[key], rollout) for key, (count, rollout) in said)


Status = tuple[Sequence[HostView], Sequence[FleetStatus], RunRecord | None, SourceState | None]
"""All that `mikrom status` shows: hosts, fleets, the last run, and where scheduled runs have their specs from."""


def status_document(status: Status) -> text.Document:
    """The status for programs; `wanted` of a fleet is null where the specs do not name it."""
    views, fleets, last, source = status
    return hosts_document(views) | {"fleets": fleets, "last_run": last and results.run_row(last), "source": source}


def status_text(status: Status, now: datetime, style: text.Style) -> str:
    """The screen. Ends with a line break."""
    views, fleets, last, source = status
    tables = [(HOSTS, views), *([(FLEETS, fleets)] if fleets else [])]
    parts = [*(text.row_table(columns, rows, style) for columns, rows in tables), _last_run(last, now, style)]
    if source is not None:
        bad = source.problem or is_overdue(source, now)
        parts.append(style.paint(source_line(source, now), "red" if bad else "") + "\n")
    return "\n".join(parts)


def _last_run(run: RunRecord | None, now: datetime, style: text.Style) -> str:
    if run is None:
        return "No run so far.\n"
    at = results.made_by(run) if run.revision else run.origin
    times = f", the same {run.times} times in a row" if run.times > 1 else ""
    when = text.sanitize(f"{text.age(run.finished_at, now)} ago, project {run.project} at {at}{times}")
    return f"Last run {when}:\n{results.conclusion_text(run, style)}\n"


def is_overdue(source: SourceState | None, now: datetime) -> bool:
    """Whether a scheduled run should have come, and has not."""
    return source is not None and source.next_at is not None and now - source.next_at > GRACE


def source_line(source: SourceState, now: datetime) -> str:
    """What is known of the specs of scheduled runs, without a line break."""
    name, late = f"Scheduled runs use {text.sanitize(source.name)}", ""
    if source.next_at is not None and is_overdue(source, now):
        since = text.age(source.next_at, now)
        late = f"; none has come since one was due {since} ago: are Beat and a control worker running?"
    if not source.problem:
        read = f"revision {text.sanitize(source.revision)}, read {text.age(source.looked_at, now)} ago"
        return f"{name}: {read}{late or '.'}"
    used = f"revision {text.sanitize(source.revision)} is used on" if source.revision else "nothing is planned"
    good = f", which was good until {text.age(source.good_at, now)} ago" if source.good_at else ""
    return f"{name}{good}; {used}: {text.sanitize(source.problem)}{late}"


def description_document(
    name: str, views: Sequence[HostView], fleets: Iterable[FleetStatus], runs: Sequence[RunRecord]
) -> text.Document:
    """Everything that is called `name`, or a VM that has the address, each with the latest actions on it."""
    rows = vms_in(views)
    meant = (row for row in rows if name in {row.name, *row.addresses.values()})
    found = [{"kind": "VM", **msgspec.to_builtins(row), **_latest(runs, row.name, row.host)} for row in meant]
    for view in (view for view in views if view.host == name):
        inside = [row for row in rows if row.host == name]
        found.append({"kind": "Host", **text.row_document(HOSTS, view), **_inside(inside), **_latest(runs, name)})
    for fleet in (fleet for fleet in fleets if fleet.fleet == name):
        inside = [row for row in rows if (row.project, row.fleet) == (fleet.project, name)]
        found.append({"kind": "Fleet", **text.row_document(FLEETS, fleet), **_inside(inside), **_latest(runs, name)})
    return {"found": found}


def _latest(runs: Sequence[RunRecord], name: str, host: str = "") -> text.Document:
    mine = [event for event in results.events_in(runs, name) if host in {"", event[1].host}]
    return results.events_document(mine[-OUTPUT.described_actions :])


def _inside(rows: Sequence[ObservedVM]) -> text.Document:
    phases = sorted(group_by(rows, lambda row: row.phase).items())
    names = {phase: text.grouped(row.name for row in found) for phase, found in phases}
    return {"names_by_phase": names, "vms_by_host": dict(sorted(Counter(row.host for row in rows).items()))}


Files = Sequence[ImageFile]
ByHost = Mapping[str, Files]  # the files of images that each host may need


def images_document(named: Files, needed: ByHost, views: Sequence[HostView]) -> text.Document:
    """The files that the specs name, and per host what it may need, has, and could not fetch."""
    rows = []
    for view in views:
        cached, failed = _files_on(view)
        needs = sorted({file.sha256 for file in needed.get(view.host, ())})
        rows.append(text.pick(view, "host", "error") | {"needed": needs, "cached": cached, "failed": failed})
    return {"files": named, "hosts": rows}


def _files_on(view: HostView) -> tuple[tuple[CachedFile, ...], dict[str, str]]:
    """What a host has cached, and why it could not fetch others, by digest."""
    return (view.report.images, view.report.unfetched) if view.report else ((), {})


def images_text(named: Files, needed: ByHost, views: Sequence[HostView], now: datetime, style: text.Style) -> str:
    """A line for each file on each host that has it or may need it, then what could not be fetched."""
    rows = [row for view in views for row in _rows_of(view, named, needed.get(view.host, ()), now)]
    if not rows:
        return "No images: the specs name none, and no host has any.\n"
    shown = text.table(("HOST", "IMAGE", "SHA256", "SIZE", "VMS", "USED"), rows, style)
    failed = (f"{view.host}: {why}" for view in views for why in _files_on(view)[1].values())
    return shown + text.section("Not fetched", failed, style, "red")


def _rows_of(view: HostView, named: Files, needed: Files, now: datetime) -> Iterator[tuple[text.Cell, ...]]:
    names = defaultdict(list)
    for file in dict.fromkeys([*named, *needed]):
        container = f" ({file.source.partition(':')[2]})" if is_container_image(file.source) else ""
        names[file.sha256].append(f"{file.image} {file.part}{container}")
    there = {cached.sha256: cached for cached in _files_on(view)[0]}
    unknown = "unknown" if view.error else "missing"
    for sha256 in dict.fromkeys([*(file.sha256 for file in needed), *there]):
        cached = there.get(sha256)
        known = (view.host, ", ".join(names[sha256]) or "-", sha256[:12])
        if cached is None:
            yield *known, "-", "-", (unknown, "yellow")
        else:
            size = text.mebibytes(-(-cached.size_bytes // (1 << 20)))
            told = " ".join([str(cached.vms), *cached.used_by[:3], *["…"][: len(cached.used_by[3:])]])
            yield *known, size, told, f"{text.age(cached.last_used_at, now)} ago"


Revisions = Sequence[Revision]


def revisions_text(revisions: Revisions, now: datetime, style: text.Style) -> str:
    """One line per revision. Ends with a line break."""
    rows: list[list[text.Cell]] = []
    for one in revisions:
        when = (text.time_text(one.started_at), (text.age(one.started_at, now), "dim"))
        result = (_result(one), results.exit_look(0 if one.converged else one.exit_code))
        rows.append([(f"{one.project}/{one.number}", "bold"), *when, one.origin, results.made_by(one), result])
    return text.table(("REV", "WHEN", "AGE", "WHO", "REVISION", "RESULT"), rows, style)


def revision_details(revision: Revision, runs: Sequence[RunRecord], style: text.Style) -> str:
    """One revision, and each of its runs with the fields that it changed. Ends with a line break."""
    head = f"Revision {revision.project}/{revision.number}, plan {revision.plan}: {_result(revision)}"
    return "\n".join([style.paint(text.sanitize(head), "bold"), "", *(results.run_details(run, style) for run in runs)])


def revision_list(revisions: Revisions, runs: Sequence[RunRecord]) -> text.Document:
    """Revisions, newest first, each with the `run` that brought it; `runs` are those of a single one."""
    names = ("number", "plan", "restores", "converged")
    rows = [text.pick(one, *names) | {"held": bool(one.held), "run": results.run_row(one)} for one in revisions]
    return {"revisions": rows, "runs": results.runs_document(runs, [])["runs"]}


def _result(revision: Revision) -> str:
    back = f"Goes back to {revision.restores}. " if revision.restores else ""
    return f"{back}{revision.conclusion}" + (" Beat leaves it alone." if revision.held else "")

"""The desired state: what the specs want of each VM on the host where it belongs, its addresses and its images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from ipaddress import IPv4Address
from typing import Any

from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import DesiredVM, PinnedFile, VMSpec
from mikrom_reconcile.core.model.documents import Diagnostic, SourceTree
from mikrom_reconcile.core.model.encoding import spec_digest
from mikrom_reconcile.core.model.errors import SpecError
from mikrom_reconcile.core.model.fields import drop_paths
from mikrom_reconcile.core.parsing.documents import dedupe_by_position
from mikrom_reconcile.core.parsing.schema_errors import Schemas
from mikrom_reconcile.core.placement.scheduler import NOTHING, Scheduler
from mikrom_reconcile.core.specs.load import Specs, UnplacedVM, expand, hosts_of, load
from mikrom_reconcile.core.specs.networks import Network
from mikrom_reconcile.core.specs.refactor import Refactor
from mikrom_reconcile.core.specs.resolve import Resolver


def render(
    specs: Specs,
    here: str,
    placed: Iterable[tuple[UnplacedVM, str]],
    leases: Mapping[str, Mapping[str, str]] = NOTHING,
    known: Mapping[str, DesiredVM] = NOTHING,
) -> list[DesiredVM]:
    """What the specs want of these VMs, each on its host, or "" for one that has none. Raises SpecError. `leases` are
    the addresses that VMs are known to have. `known` were rendered before, and stay so on the same host.
    """
    hosts, resolver = hosts_of(specs, here), Resolver(specs)
    digests: dict[int, str] = {}  # VMs that come out equal share their resolved object: one digest
    vms = []
    for unplaced, host in placed:
        vm = known.get(unplaced.name)
        if vm is None or vm.host != host:
            resolved = resolver.resolve(unplaced, host or (unplaced.hosts or hosts)[0])
            (state, spec), fleet = resolved, unplaced.fleet
            if (digest := digests.get(id(resolved))) is None:
                counted = drop_paths(spec, fleet.ignore_changes)
                digest = digests[id(resolved)] = spec_digest(specs.project, fleet.name, state, counted, fleet.policy)
            vm = DesiredVM(
                name=unplaced.name,
                project=specs.project,
                fleet=fleet.name,
                host=host,
                state=state,
                spec=spec,
                policy=fleet.policy,
                spec_digest=digest,
                ignore_changes=fleet.ignore_changes,
                ignore_drift=fleet.drift.paths("ignore"),
                adopts=specs.refactor.hand_started.get(unplaced.name),
            )
        if vm.spec.network_interfaces:
            vm = replace(vm, addresses=retained(vm.spec, leases.get(vm.name, {}), specs.networks))
        vms.append(vm)
    if specs.networks:
        resolver.mistakes += _address_conflicts(specs, vms)
    resolver.mistakes += _file_conflicts(specs, vms)
    resolver.check()
    return vms


def validate_specs(tree: SourceTree, schemas: Schemas, *, here: str, extra_vars: dict[str, Any] | None = None) -> Specs:
    """The specs in `tree`, or SpecError with every problem, also of rendering the good documents: in one round."""
    specs, problems, is_complete = load(tree, schemas, extra_vars)
    if problems and is_complete:
        try:
            render_all(specs, here=here)
        except SpecError as error:
            problems = dedupe_by_position([*problems, *error.problems])
    if problems:
        raise SpecError(problems)
    return specs


def render_all(specs: Specs, *, here: str) -> tuple[DesiredVM, ...]:
    """All that the specs want, placed as if nothing existed yet. Raises SpecError for what some host cannot resolve."""
    unplaced = expand(specs)
    resolver = Resolver(specs)
    empty = [replace(fleet, replicas=1) for fleet in specs.fleets if fleet.replicas == 0]
    specimens = expand(replace(specs, fleets=tuple(empty), refactor=Refactor()))  # what nobody is made from yet
    one_of_each = {id(vm.template): vm for vm in reversed((*unplaced, *specimens))}
    for vm in one_of_each.values():  # what cannot be answered on a host cannot for any VM of the same template
        hosts = vm.hosts or (here,)
        for host in hosts if vm.template.variables_used else hosts[:1]:
            resolver.resolve(vm, host)
    resolver.check()
    placing = Scheduler(specs, here, located={}).place(unplaced, resolver.need)
    return tuple(render(specs, here, zip(unplaced, placing.hosts, strict=True)))


def static_addresses(spec: VMSpec) -> dict[str, str]:
    """The addresses that a spec says itself."""
    return {name: nic.ip for name, nic in spec.network_interfaces.items() if nic.ip}


def retained(spec: VMSpec, held: Mapping[str, str], networks: Mapping[str, Network]) -> dict[str, str]:
    """The static addresses of a VM, and those of its leases that its spec still allows."""
    had = {name: int(IPv4Address(ip)) for name, ip in held.items() if name in spec.network_interfaces}
    leasing = ((name, nic) for name, nic in spec.network_interfaces.items() if name in had and not nic.ip)
    kept = (name for name, nic in leasing if networks[nic.network].leases(nic.pool or "", had[name]))
    return static_addresses(spec) | {name: held[name] for name in kept}


def _address_conflicts(specs: Specs, vms: Iterable[DesiredVM]) -> Iterator[Diagnostic]:
    """Addresses that VMs cannot have: a static one of another's, more leases than a pool has addresses."""
    documents = {fleet.name: fleet.document for fleet in specs.fleets}
    owners: dict[tuple[str, str], tuple[str, str]] = {}
    leases: Counter[tuple[str, str]] = Counter()
    size_of = cache(lambda network, pool: sum(map(len, specs.networks[network].free(pool))))
    for vm, name, nic in ((each, *nic) for each in vms for nic in each.spec.network_interfaces.items()):
        why = ""
        if nic.ip:
            owner = owners.setdefault((nic.network, nic.ip), (vm.name, name))
            why = "" if owner == (vm.name, name) else f"{nic.ip} is {owner[0]}'s already"
        elif vm.state != "absent":
            pool = nic.network, nic.pool or ""
            leases[pool] += 1
            if leases[pool] == size_of(*pool) + 1:
                why = f"{pool_text(*pool)} has {size_of(*pool)} addresses, and more VMs want one"
        if why:
            pointer = ("spec", "template", "network_interfaces", name)
            yield Diagnostic(document=documents[vm.fleet], pointer=pointer, message=f"{vm.name}: {why}")


def _file_conflicts(specs: Specs, vms: Iterable[DesiredVM]) -> Iterator[Diagnostic]:
    """Existing files that one VM writes and another has, on whichever hosts: they may come to the same."""
    documents = {fleet.name: fleet.document for fleet in specs.fleets}
    owners: dict[str, tuple[str, str, bool]] = {}
    for vm, name, drive in ((each, *drive) for each in vms for drive in each.spec.drives.items()):
        if drive.source is None:
            continue
        mine = vm.name, name, drive.read_only
        owner = owners.setdefault(drive.source, mine)
        if owner != mine and not (drive.read_only and owner[-1]):
            message = f"{vm.name}: {drive.source} is {owner[0]}'s already; only what all have as read_only is shared"
            pointer = ("spec", "template", "drives", name, "source")
            yield Diagnostic(document=documents[vm.fleet], pointer=pointer, message=message)


def pool_text(network: str, pool: str) -> str:
    """A pool, in words."""
    return f"pool {pool} of network {network}" if pool else f"network {network}"


class ImageFile(PinnedFile, frozen=True, kw_only=True):
    """One file of an image. `part` is its key in the Image document: kernel, initrd or rootfs."""

    image: str
    part: str


def named_files(specs: Specs) -> tuple[ImageFile, ...]:
    """The files of all images that documents describe, by image."""
    return tuple(
        ImageFile(image=name, part=part, source=file.source, sha256=file.sha256)
        for name, image in sorted(specs.images.items())
        if image.boot
        for part, file in image.boot.files().items()
    )


def files_by_host(specs: Specs, *, here: str) -> dict[str, tuple[ImageFile, ...]]:
    """For each host the files of every VM that it may get, sorted. Raises SpecError."""
    scheduler, resolver = Scheduler(specs, here, located={}), Resolver(specs)
    images: dict[str, set[str]] = {host: set() for host in scheduler.hosts}
    for vm in expand(specs):
        for host in scheduler.eligible_hosts(vm):
            state, spec = resolver.resolve(vm, host)
            if state != "absent":
                images[host].add(spec.image)
    resolver.check()
    files = sorted(named_files(specs), key=lambda file: (file.image, file.part))
    return {host: tuple(file for file in files if file.image in needed) for host, needed in images.items()}

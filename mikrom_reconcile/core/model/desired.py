"""What should run: what a VM is given, and VMs expanded from the specs before and after a host was chosen."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import force_setattr

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]  # a SHA-256 in hexadecimal
Duration = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,6}(ms|s|m|h|d)$")]
"""A time as specs write it, such as "10m"; `seconds_of` reads it."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class PinnedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is what its digest says, wherever it comes from: `file://` or `https://`."""

    source: str
    sha256: Digest


class RootDisk(PinnedFile, frozen=True, kw_only=True):
    """The image of a root disk, of which each VM gets a copy-on-write copy unless it is `read_only`. One that is made
    of a container image has `size_mib`, unless that says nothing, and its first program runs what the image or the VM
    says, or leaves that to the image's own init.
    """

    read_only: bool = False
    size_mib: Annotated[int, msgspec.Meta(ge=1, le=67108864)] | None = None
    init: Literal["mikrom", "image"] = "mikrom"


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What an Image document says that a VM boots."""

    kernel: PinnedFile
    initrd: PinnedFile | None = None
    rootfs: RootDisk | None = None

    def files(self) -> dict[str, PinnedFile]:
        """All that there are, under their keys."""
        named = {"kernel": self.kernel, "initrd": self.initrd, "rootfs": self.rootfs}
        return {part: file for part, file in named.items() if file is not None}


class RateLimiter(msgspec.Struct, frozen=True, kw_only=True):
    """What an interface may carry in each direction, or a drive, in megabits per second; None: no limit."""

    bandwidth_mbit: Annotated[int, msgspec.Meta(ge=1, le=1000000)] | None = None


class DriveRateLimiter(RateLimiter, frozen=True, kw_only=True):
    """What a drive may carry, and in how many operations per second."""

    ops: Annotated[int, msgspec.Meta(ge=1, le=1000000000)] | None = None


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of a VM's own that outlives its restarts and replacements. `on_delete` says what a delete does to it. It
    is new, of `size_mib`, or the file `source`, which is never deleted. The init of a container image mounts its ext4
    file system at `mount`. A kernel boots from an `is_root_device` where its image has no root disk.
    """

    size_mib: Annotated[int, msgspec.Meta(ge=1, le=67108864)] | None = None
    source: str | None = None
    read_only: bool = False
    rate_limiter: DriveRateLimiter = DriveRateLimiter()
    mount: str | None = None
    on_delete: Literal["retain", "delete"] = "retain"
    is_root_device: bool = False


class Egress(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM may reach beyond its network: destinations such as "10.0.0.0/8:443" or "10.0.0.1:53/udp"."""

    default: Literal["allow", "deny"] = "allow"
    allow: tuple[str, ...] = ()


class NetworkInterface(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a VM. From `cidr` to `host_access` it is what its Network says. With `guard` it sends only from
    its own addresses, and reaches of its host only the ports in `host_access`; with `isolation` no other VM of the
    network. `ip` is a static address; without one it gets an address of `pool`, leased to the VM for life. `publish`
    has ports of the host, and the guest's port that each leads to. `mtu` is told to the guest; None: Linux's own.
    """

    network: str
    cidr: str = ""
    gateway: str = ""
    nat: bool = False
    guard: bool = True
    isolation: bool = False
    egress: Egress = Egress()
    host_access: tuple[str, ...] = ()
    publish: dict[str, Port] = {}
    pool: str | None = None
    ip: str | None = None
    mtu: Annotated[int, msgspec.Meta(ge=68, le=65535)] | None = None
    rate_limiter: RateLimiter = RateLimiter()


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What "running" has to mean, judged by the VM's host. `tcp` connects to `port` of the guest's first interface,
    `http` wants a status below 400 from `path` there. `console` finds fault with a guest that printed `deny` since its
    boot and, if `expect` is given, that has not printed it yet; both are regular expressions.
    """

    type: Literal["tcp", "http", "console"]
    port: Port | None = None
    path: str = "/"
    expect: str | None = None
    deny: str | None = None
    interval: Duration = "5s"
    timeout: Duration = "2s"
    healthy_after: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1


def seconds_of(duration: Duration) -> float:
    """The seconds of "250ms", "10s", "5m", "1h" or "2d"; anything else was refused when the specs were read."""
    number = duration.rstrip("mshd")
    return int(number) * _UNITS_S[duration[len(number) :]]


State = Literal["running", "stopped", "paused", "suspended", "absent"]
"""What the spec wants a VM to be. What a host sees is a `Phase`."""

Share = int | str  # a number of VMs, or a percentage of them such as "20%"
DISRUPTION = "10%"
"""Share of a fleet that may be down at a time: what users of rolling updates expect when they say nothing."""


def resolve_share(share: Share, total: int) -> int:
    """How many of `total` a share stands for: percentages are rounded down, but never to none unless 0 was said."""
    if isinstance(share, int):
        return share
    percent = int(share.rstrip("%"))
    return max(1, total * percent // 100) if percent else 0


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Firecracker's machine configuration, under its names. `cpu_template` makes unlike hosts' CPUs look the same."""

    vcpu_count: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1
    mem_size_mib: Annotated[int, msgspec.Meta(ge=1, le=1048576)] = 128
    smt: bool = False
    cpu_template: Literal["C3", "T2", "T2S", "T2CL", "T2A"] | None = None
    huge_pages: Literal["None", "2M"] = "None"


class MmdsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the metadata service answers: with `imds_compat` as that of EC2 does, whatever it is asked for."""

    imds_compat: bool = False


class Vsock(msgspec.Struct, frozen=True, kw_only=True):
    """Sockets between a guest and its host, over a Unix socket in the VM's run folder."""

    guest_cid: Annotated[int, msgspec.Meta(ge=3, le=4294967294)] = 3


class Balloon(msgspec.Struct, frozen=True, kw_only=True):
    """What takes memory back from a guest that has a driver for it, under Firecracker's names."""

    amount_mib: Annotated[int, msgspec.Meta(ge=0, le=1048576)] = 0
    deflate_on_oom: bool = True
    stats_polling_interval_s: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """What a host does by itself when a VMM dies that nobody ordered to. `attempts` within `interval`, then the VM is
    left down; the first at once, each further one after `delay`. `on-failure` leaves down what shut itself down.
    """

    policy: Literal["always", "on-failure", "never"] = "always"
    attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    interval: Duration = "10m"
    delay: Duration = "0s"


class SecretRef(msgspec.Struct, frozen=True, kw_only=True):
    """Stands for a secret that only a VM's host can read."""

    secret_ref: str


class VMSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a template says of a VM but its state. Field paths are the spec language's (`fields.py`). `boot`
    is what the image of that name stands for, None for the built-in one. `command` takes the place of what a container
    image runs, `env` is added to its variables. `mmds` is what the guest reads as its metadata; secrets in it are
    references. `cpu_config` is a custom CPU template in Firecracker's own words.
    """

    image: str
    machine: Machine = Machine()
    cpu_config: dict[str, Any] | None = None
    boot: Boot | None = None
    boot_args: Annotated[str, msgspec.Meta(max_length=2000, pattern="^[ -~]*$")] = ""
    command: tuple[str | int, ...] = ()
    env: dict[str, str | int | SecretRef] = {}
    drives: dict[str, Drive] = {}
    network_interfaces: dict[str, NetworkInterface] = {}
    mmds: dict[str, Any] | None = None
    mmds_config: MmdsConfig = MmdsConfig()
    entropy: bool = True
    vsock: Vsock | None = None
    balloon: Balloon | None = None
    checks: dict[str, Check] = {}
    restart: Restart = Restart()

    @property
    def secret_env(self) -> dict[str, Any]:
        """The variables whose values only the host knows, as references."""
        secrets = (item for item in self.env.items() if isinstance(item[1], SecretRef))
        return {name: msgspec.to_builtins(value) for name, value in secrets}

    @property
    def has_metadata(self) -> bool:
        """Whether it has a metadata service."""
        return self.mmds is not None or bool(self.secret_env)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What protects a fleet; kept in each VM's record, so that removing the fleet does not unprotect it. `prune_max` is
    the share of the fleet that one unattended run may remove. `allow_empty` lets the fleet lose its last VM.
    `prevent_destroy` forbids what would lose data; None in a spec keeps what the VM's record says.
    """

    prune_max: Share = "20%"
    allow_empty: bool = False
    prevent_destroy: bool | None = None


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """How a fleet's running VMs are brought to a new spec: in batches, in the `order` of their names or of a list of
    VMs and hosts. `serial` says the sizes of the batches, the last one repeats; none are larger than the disruption
    share. More than `max_fail_percentage` of a batch must fail to halt it. `skip` goes on without the VMs of
    unreachable hosts. A batch waits until those before have been healthy for `min_healthy_time`. A VM that has not been
    so `healthy_deadline` after its spec changed has failed; after `progress_deadline` in which nothing changed or got
    healthy it halts. The first batch is of the size `canary`, and without `auto_promote` the others wait until a person
    promotes it. With `auto_revert` what it has brought to a spec that failed goes back to what was healthy before.
    """

    serial: Share | tuple[Share, ...] = ()
    max_fail_percentage: float = 0.0
    unreachable: Literal["fail", "skip"] = "fail"
    min_healthy_time: Duration = "0s"
    order: Literal["name", "reverse"] | tuple[str, ...] = "name"
    healthy_deadline: Duration | None = None
    progress_deadline: Duration | None = None
    canary: Share = 0
    auto_promote: bool = False
    auto_revert: bool = False

    def __post_init__(self) -> None:
        if self.auto_revert and self.healthy_deadline is None:  # what has failed has to be known at last
            force_setattr(self, "healthy_deadline", "5m")

    def ordered(self, vms: Sequence["DesiredVM"]) -> list[str]:
        """The names in its order: those that a list names, or whose hosts it names, come first."""
        if isinstance(self.order, str):
            return [vm.name for vm in (vms if self.order == "name" else reversed(vms))]
        places = {word: place for place, word in reversed([*enumerate(self.order)])}
        last = len(places)
        return [vm.name for vm in sorted(vms, key=lambda vm: min(places.get(vm.name, last), places.get(vm.host, last)))]

    @property
    def waits_for_promotion(self) -> bool:
        """Whether nobody follows the canaries until a person says so."""
        return self.canary not in {0, "0%"} and not self.auto_promote


class DriftPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What scheduled runs do about a fleet: all that is needed, or nothing, which is then told (`report`). `heal` is
    what they put right all the same, back to what was last applied: dead VMs, or all drift. `fields` says otherwise for
    drift in single paths; what is to be ignored there, nobody puts right.
    """

    mode: Literal["enforce", "report"] = "enforce"
    heal: Literal["all", "restarts"] | None = None
    fields: dict[str, Literal["enforce", "report", "ignore"]] = {}

    def paths(self, word: str) -> tuple[str, ...]:
        """The paths for which `fields` says so."""
        return tuple(path for path, said in self.fields.items() if said == word)


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How many VMs of a fleet may be down while running ones are taken down for one of these `reasons`. It holds
    always, or within windows that begin by `schedule`, a cron line in `timezone`, and last `duration`.
    """

    max: Share
    reasons: tuple[Literal["spec_change", "drift", "move"], ...] = ("spec_change", "drift", "move")
    schedule: str | None = None
    duration: Duration = "0s"
    timezone: str = "UTC"


class Freeze(msgspec.Struct, frozen=True, kw_only=True):
    """That nothing of a project is to be changed: who wants that, why, and when it ends by itself (None: never)."""

    by: str
    reason: str = ""
    until: datetime | None = None

    def holds(self, now: datetime) -> bool:
        """Whether it has not ended by itself."""
        return self.until is None or now < self.until

    def __str__(self) -> str:
        """In words."""
        until = f" until {self.until.isoformat(timespec='minutes')}" if self.until else ""
        return f"frozen by {self.by}{until}{f': {self.reason}' if self.reason else ''}"


class Halt(msgspec.Struct, frozen=True, kw_only=True):
    """That no VM is to be brought to what has this digest any more, why, and what has become of those that were."""

    spec_digest: str
    why: str
    outcome: Literal["halted", "reverted"] = "halted"


class DesiredVM(msgspec.Struct, frozen=True, kw_only=True):
    """One VM as the specs want it, on its host. `spec_digest` covers project, fleet, state, spec and policy, not name
    and host, and carries its version. `addresses` maps interfaces to the addresses that are static or leased; those of
    a VM that is as wanted are in its record. `ignore_drift` has the paths in which the VMM may be otherwise than
    recorded. `canary` says whether its fleet waits for it (None: as before), `halt` that its rollout is over; its
    record keeps both. `rollout` is the token of the run in which the rollout began that brings this and may go back to
    what was before: 0 is this run, None: it may not. `adopts` is what was started by hand: its host and API socket.
    """

    name: str
    project: str
    fleet: str
    host: str
    state: State
    spec: VMSpec
    policy: Policy
    spec_digest: str
    ignore_changes: tuple[str, ...] = ()
    ignore_drift: tuple[str, ...] = ()
    addresses: dict[str, str] = {}
    canary: bool | None = None
    halt: Halt | None = None
    rollout: int | None = None
    adopts: tuple[str, str] | None = None

    @property
    def goes_back(self) -> bool:
        """Whether this is what the VM had before its rollout failed."""
        return self.halt is not None and self.halt.outcome == "reverted"

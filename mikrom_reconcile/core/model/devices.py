"""What a VM is given besides CPU and memory: what it boots, its disks, its links, and the checks of its guest."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""

Duration = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,6}(ms|s|m|h|d)$")]
"""A time as specs write it, such as "10m"; `seconds_of` reads it."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class PinnedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is what its digest says, wherever it comes from: `file://` or `https://`."""

    source: str
    sha256: Digest


class RootDisk(PinnedFile, frozen=True, kw_only=True):
    """The image of a root disk. Unless it is `read_only`, each VM gets a copy-on-write copy of its own."""

    read_only: bool = False


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What an Image document says that a VM boots."""

    kernel: PinnedFile
    initrd: PinnedFile | None = None
    rootfs: RootDisk | None = None

    def files(self) -> dict[str, PinnedFile]:
        """All that there are, under their keys."""
        named = {"kernel": self.kernel, "initrd": self.initrd, "rootfs": self.rootfs}
        return {part: file for part, file in named.items() if file is not None}


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """A disk of a VM's own that outlives its restarts and replacements. `on_delete` says what a delete does to it."""

    size_mib: Annotated[int, msgspec.Meta(ge=1, le=67108864)]
    on_delete: Literal["retain", "delete"] = "retain"


class RateLimiter(msgspec.Struct, frozen=True, kw_only=True):
    """What an interface may carry in each direction, in megabits per second; None: no limit."""

    bandwidth_mbit: Annotated[int, msgspec.Meta(ge=1, le=1000000)] | None = None


class NetworkInterface(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a VM. `cidr`, `gateway` and `nat` are those of its Network.

    `ip` is a static address; without one it gets an address of `pool`, leased to the VM as long as it exists.
    """

    network: str
    cidr: str = ""
    gateway: str = ""
    nat: bool = False
    pool: str | None = None
    ip: str | None = None
    rate_limiter: RateLimiter = RateLimiter()


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What "running" has to mean, judged by the VM's host.

    `tcp` connects to `port` of the guest's first interface, `http` wants a status below 400 from `path` there.
    `console` finds fault with a guest that printed `deny` since its boot and, if `expect` is given, that has not
    printed it yet; both are regular expressions.
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

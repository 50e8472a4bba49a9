"""What runs saw last, counted, for metrics: nobody asks the hosts once more for them. All of it may be lost."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from redis import RedisError

from mikrom_reconcile.core.model.observed import HostReport, Phase
from mikrom_reconcile.core.model.ready import ready

if TYPE_CHECKING:
    from redis import Redis

    from mikrom_reconcile.dispatch.transport.redis_keys import Keys


class Census(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one host: its memory and what is promised of it; with a project, its VMs by fleet and phase."""

    mem_size_mib: int = 0
    promised_mib: int = 0
    fleets: dict[str, dict[Phase, int]] = {}


def count(redis: Redis, keys: Keys, project: str, reports: Iterable[HostReport]) -> None:
    """Keep what reports to a run of `project` say."""
    found: dict[str, Census] = {}
    for report in reports:
        found[report.host] = Census(
            mem_size_mib=report.capacity.mem_size_mib, promised_mib=report.promised.mem_size_mib
        )
        found[f"{report.host} {project}"] = Census(fleets=report.phases)
    with suppress(RedisError):  # the run goes on, and says so itself if it cannot
        if found:
            redis.hset(keys.vms, mapping={name: msgspec.json.encode(census) for name, census in found.items()})


def counted(redis: Redis, keys: Keys, hosts: Iterable[str]) -> dict[tuple[str, str], Census]:
    """By host and project ("" for the host itself). Raises RedisError."""
    found: Any = redis.hgetall(keys.vms)
    named = {tuple(field.decode().partition(" ")[::2]): census for field, census in found.items()}
    with suppress(msgspec.MsgspecError):  # another release wrote it
        wanted = {*hosts}
        return {
            (host, project): msgspec.json.decode(census, type=ready(Census))
            for (host, project), census in sorted(named.items())
            if host in wanted
        }
    return {}

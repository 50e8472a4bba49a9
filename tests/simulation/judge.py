"""The ten guarantees, checked while a simulation goes on.

It shares nothing with what it checks: it knows processes, the bytes of files, what was sent, and what people wanted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from tests.simulation.machine import BAD, VMM, Machine
from tests.simulation.specs import Wanted

if TYPE_CHECKING:
    from mikrom_reconcile.host.ports import VMRecord
    from tests.simulation.world import World

Order = dict[str, Any]


class Broken(BaseException):
    """A guarantee does not hold. No handler of the code under test may swallow it."""

    def __init__(self, guarantee: str, why: str) -> None:
        super().__init__(f"{guarantee}: {why}")
        self.guarantee = guarantee


@dataclass(frozen=True)
class Run:
    """What somebody asked for; `is_free` of shares: a person named VMs, or allowed all."""

    project: str
    wanted: Wanted
    is_free: bool = False
    is_retry: bool = False


class Judge:
    """Told of everything that happens; raises Broken at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.runs: dict[str, Run] = {}
        self.orders_sent = 0
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        self._used: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._protected: set[tuple[str, str]] = set()
        self._done: set[tuple[str, str]] = set()
        self._taken_down: dict[tuple[str, str], str] = {}
        self._removed: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._rolled: dict[str, set[str]] = defaultdict(set)

    def broken(self, guarantee: str, why: str) -> NoReturn:
        self._world.clock.failure = Broken(guarantee, why)
        raise self._world.clock.failure

    # ---- processes --------------------------------------------------------------------------------------------------

    def started(self, machine: Machine, vmm: VMM) -> None:
        for other in self._world.machines.values():
            for it in other.vmms.values():
                if it is vmm:
                    continue
                if (it.project, it.vm) == (vmm.project, vmm.vm):
                    self.broken("G1", f"{vmm.vm} runs on {other.name} and on {machine.name}")
                if shared := it.addresses & vmm.addresses:
                    self.broken("G9", f"{it.vm} on {other.name} and {vmm.vm} on {machine.name} have {shared}")

    def runs_now(self, vmm: VMM) -> None:
        self._taken_down.pop((vmm.project, vmm.vm), None)

    def is_stopped(self, machine: Machine, vmm: VMM, record: VMRecord, order: Order | None) -> None:
        """A driver is about to end a VMM."""
        project = order["action"]["project"] if order else record.project
        if {project, record.project} != {vmm.project}:
            self.broken("G6", f"{vmm.vm} of {vmm.project} is stopped for {project}")
        if order is None or vmm.status == "starting" or vmm.is_hung:
            return
        as_recorded = (vmm.machine, vmm.boot_args) == (record.spec.machine, record.spec.boot_args)
        if (machine.name, order["action"]["id"]) in self._done and as_recorded and vmm.status == "running":
            self.broken("G7", f"{vmm.vm} is stopped by an order that was done before")
        run = self.runs.get(order["run_id"])
        if record.state == "absent" and record.action_id != order["action"]["id"]:
            return  # half deleted, by an order of before: it was down already
        if run is not None and not run.is_free and vmm.vm in (names := run.wanted.names(run.project)):
            self._taken_down[vmm.project, vmm.vm] = names[vmm.vm]
            self._check_share(run, names, names[vmm.vm], project)

    def _check_share(self, run: Run, names: dict[str, str], fleet: str, project: str) -> None:
        down = {vm for (its, vm), of in self._taken_down.items() if (its, of) == (project, fleet) and vm in names}
        size = sum(of == fleet for of in names.values())
        if len(down) > max(1, size // 10):
            self.broken("G4", f"{sorted(down)} of {size} VMs of {fleet} were taken down at a time")

    # ---- disks ------------------------------------------------------------------------------------------------------

    def file_changed(self, machine: Machine, what: str, path: str, content: bytes) -> None:
        self.is_written(content)
        if what == "unlink" and path.startswith("/drives/") and not path.endswith(".new"):
            self.broken("G5", f"{machine.name}: {path} was removed")
        _, room, *rest = path.split("/")
        if room == "vms" and rest[-1] == "record.json":
            self._record_changed(machine, rest[0], what, content)

    def _record_changed(self, machine: Machine, vm: str, what: str, content: bytes) -> None:
        key = machine.name, vm
        before = self._records.pop(key, None)
        if what == "unlink":
            if key in self._protected:
                self.broken("G5", f"{machine.name}: the record of {vm}, which is protected, was removed")
            return
        try:
            record = json.loads(content)["record"]
        except ValueError:  # a full disk has it written in place: not whole yet
            return
        self._records[key] = record
        if record["policy"].get("prevent_destroy"):
            self._protected.add(key)
        if before is None:
            return
        if before["project"] != record["project"]:
            self.broken("G6", f"{machine.name}: {vm} of {before['project']} became {record['project']}'s")
        if record["generation"] < before["generation"] or record["token"] < before["token"]:
            self.broken("G7", f"{machine.name}: {vm} went back to generation {record['generation']}")
        if record["action_id"] != before["action_id"]:
            self._used[key].add(before["action_id"])
            if record["action_id"] in self._used[key] or record["generation"] == before["generation"]:
                self.broken("G7", f"{machine.name}: {vm} was changed by an order of before")

    def disk_was_lost(self, machine: Machine) -> None:
        """What was not synced is not there any more."""
        for key in [key for key in self._records if key[0] == machine.name]:
            del self._records[key]
            self._used.pop(key, None)
        for path, content in machine.disk.files():
            place = path.removeprefix("/state/vms/").split("/")
            if len(place) == 2 and place[1] == "record.json":
                try:
                    self._records[machine.name, place[0]] = json.loads(content)["record"]
                except ValueError:
                    continue

    def records_of(self, project: str, fleet: str) -> list[tuple[str, str]]:
        its = (project, fleet)
        return sorted(key for key, record in self._records.items() if (record["project"], record["fleet"]) == its)

    # ---- messages ---------------------------------------------------------------------------------------------------

    def is_written(self, content: bytes) -> None:
        if self._world.secret.encode() in content:
            self.broken("G10", f"the secret is in {content[:300]!r}")

    def sent(self, task: str, arguments: dict[str, Any]) -> None:
        if "order" not in arguments:
            return
        self.orders_sent += 1
        order = json.loads(arguments["order"])
        action, run = order["action"], self.runs[order["run_id"]]
        self._world.clock.say(f"sent {action['verb']} {action['vm']} to {action['host']}, {order['token']}")
        if action["verb"] == "create":
            self._not_made_elsewhere(action)
        if action["verb"] == "delete" and not run.is_free and action["vm"] not in run.wanted.names(run.project):
            self._few_are_removed(order["run_id"], action)
        if action["verb"] == "restart" and not run.is_free:
            self._is_not_rolled_on(action, run)

    def _not_made_elsewhere(self, action: Order) -> None:
        for (host, vm), record in self._records.items():
            if (vm, record["project"]) != (action["vm"], action["project"]) or record["state"] == "absent":
                continue
            machine = self._world.machines[host]
            if host != action["host"] and machine.is_dark() and host not in self._world.given_up:
                self.broken("G3", f"{vm} is made on {action['host']}, and is on {host}, which cannot be read")

    def _few_are_removed(self, run_id: str, action: Order) -> None:
        record = self._records.get((action["host"], action["vm"]))
        if record is None:
            return
        fleet = record["fleet"]
        removed = self._removed[run_id, fleet]
        there = {vm for _, vm in self.records_of(action["project"], fleet)} | removed
        removed.add(action["vm"])
        if len(removed) > max(1, len(there) * 20 // 100):
            self.broken("G4", f"{sorted(removed)} of {len(there)} VMs of {fleet} were removed by one run")
        if removed == there:
            self.broken("G4", f"the last VM of {fleet} was removed")

    def _is_not_rolled_on(self, action: Order, run: Run) -> None:
        """No second batch of a spec with which the first did not come up."""
        fleet, args = action["desired"]["fleet"], action["desired"]["spec"].get("boot_args", "")
        if BAD not in args:
            self._rolled[fleet].clear()
            return
        vmm = self._world.machines[action["host"]].vmms.get(action["vm"])
        if run.is_retry:
            self._rolled[fleet].clear()
        if vmm is not None and not vmm.is_hung and vmm.boot_args != args:
            self._rolled[fleet].add(action["vm"])
        if len(self._rolled[fleet]) > max(1, run.wanted.web // 10):
            self.broken("G8", f"{sorted(self._rolled[fleet])} were brought to a spec with which none came up")

    def carried_out(self, machine: Machine, order: Order, result: str) -> None:
        if result == "done":
            self._done.add((machine.name, order["action"]["id"]))

    # ---- in the end -------------------------------------------------------------------------------------------------

    def nobody_hangs(self) -> None:
        """As three runs by schedule leave it, without people; only what waits for a rollout may still hang."""
        for machine in self._world.machines.values():
            for vmm in machine.vmms.values():
                if vmm.is_hung and vmm.fleet != "web":
                    self.broken("G2", f"{vmm.vm} hangs, and no run by schedule brought it back")

    def all_is_as_wanted(self, wanted: Wanted) -> None:
        """By processes alone."""
        found: dict[tuple[str, str], list[VMM]] = defaultdict(list)
        for machine in self._world.machines.values():
            for vmm in machine.vmms.values():
                found[vmm.project, vmm.vm].append(vmm)
        names = {(project, vm) for project in ("shop", "bank") for vm in wanted.names(project)}
        if missing := sorted(names - found.keys()):
            self.broken("G2", f"{missing} do not run")
        if left := sorted(found.keys() - names):
            self.broken("G2", f"{left} run, and nobody wants them")
        for (_, vm), (vmm, *_others) in found.items():
            is_web = vmm.fleet == "web"
            if vmm.status != "running" or vmm.is_hung:
                self.broken("G2", f"{vm} is {vmm.status}")
            if is_web and (vmm.boot_args, vmm.machine.mem_size_mib) != (wanted.args, wanted.mem_size_mib):
                self.broken("G2", f"{vm} runs {vmm.boot_args} with {vmm.machine.mem_size_mib} MiB")

"""One VM, wanted and observed, as the rules of `diff` look at it. It decides nothing."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from mikrom_reconcile.core.model.desired import DesiredVM
from mikrom_reconcile.core.model.observed import ObservedVM
from mikrom_reconcile.core.model.plan import ChangeKind, FieldChange, VMChange

UNCHANGED: Final = "unchanged"
Verdict = VMChange | Literal["unchanged"] | None


class DiffInput(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a rule may look at for one VM.

    `desired` is None for a VM that the specs do not want, `observed` None for one that no host reported.
    `taken` is a row that is not ours but has the name. `dark` is why the VM's host gave no report, "" if it did.
    `possible_on` names dark hosts on which the VM may exist without our knowing. `double` says that the VM is
    elsewhere with a higher token, `proven` that it does there what was ordered. `placed` is why its host was chosen,
    "" if it was not; `leaves` why it may not stay where it is; `rejections` why no host can have it. `vanished` says
    that its host left the inventory. `destroy` says that all has to go, `retry` that nothing is given up.
    """

    desired: DesiredVM | None
    observed: ObservedVM | None
    name_conflict: ObservedVM | None = None
    host_unreachable: str = ""
    possible_on: tuple[str, ...] = ()
    duplicate_on: str = ""
    proven: bool = False
    placed: str = ""
    eviction_reason: str = ""
    rejections: tuple[str, ...] = ()
    host_removed: bool = False
    destroy: bool = False
    retry: bool = False

    @property
    def host(self) -> str:
        """Where the VM is, or else where it belongs."""
        return (self.observed or self._wanted()).host

    def _wanted(self) -> DesiredVM:
        assert self.desired is not None, "a case has at least one side"  # noqa: S101
        return self.desired

    def change(
        self, kind: ChangeKind, *reasons: str, wanted: ChangeKind | None = None, fields: tuple[FieldChange, ...] = ()
    ) -> VMChange:
        """A change of this VM. A removal concerns the fleet that loses it, as it is recorded."""
        side = (self.observed if kind == "delete" else None) or self.desired or self.observed or self._wanted()
        return VMChange(
            name=side.name,
            fleet=side.fleet,
            host=self.host,
            kind=kind,
            reasons=reasons,
            placed=self.placed if kind in {"create", "move"} else "",
            wanted=wanted,
            fields=fields,
            desired=self.desired,
            observed=self.observed,
        )

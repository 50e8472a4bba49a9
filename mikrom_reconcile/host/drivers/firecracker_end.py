"""How a Firecracker process ended, read from its metrics file: its exit status says nothing, and is not ours to get.

Measured with 1.12.1: the last line after a reset by the guest has i8042.reset_count 1, after a crash of the guest
vcpu.failures 1, and a killed process writes none. Counters start anew with each line.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec

from mikrom_reconcile.core.model.observed import End
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.limits import VMMS
from mikrom_reconcile.system import processes
from mikrom_reconcile.system.tails import tail


class _Keyboard(msgspec.Struct):
    reset_count: int = 0


class _Vcpu(msgspec.Struct):
    failures: int = 0


class _Line(msgspec.Struct):
    i8042: _Keyboard = msgspec.field(default_factory=_Keyboard)
    vcpu: _Vcpu = msgspec.field(default_factory=_Vcpu)


def end_of(metrics: Path) -> End:
    """How the process that wrote `metrics` ended. Raises OSError, but not for a missing file."""
    end: End = "killed"
    for line in tail(metrics, VMMS.metrics_tail_bytes).split(b"\n"):
        try:
            counters = msgspec.json.decode(line.strip(b"\0"), type=ready(_Line))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # the first line of the tail, or one that a kill cut short
        if counters.i8042.reset_count > 0:
            end = "clean"
        elif counters.vcpu.failures > 0:
            end = "crashed"
    return end


def let_end(vmm: processes.Identity, metrics: Path) -> None:
    """Let a Firecracker end that hangs since its guest has ended. One in order, or about to boot, is left alone.

    Its metrics begin when its vCPUs do, whose threads end with the guest. At a SIGHUP it still writes how that was.
    """
    if not tail(metrics, 1) or any(name.startswith("fc_vcpu") for name in processes.threads_of(vmm.pid)):
        return
    if (pidfd := processes.open_pidfd(vmm)) is not None:
        processes.kill(pidfd, signal.SIGHUP)
        processes.wait_for_end(pidfd, VMMS.leave_s)
        os.close(pidfd)

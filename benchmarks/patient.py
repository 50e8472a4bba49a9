"""Time for hosts that share two cores: import it first, for whoever imports the times and sizes binds them by name.

A host answers in milliseconds, and a thousand of them together take half a minute of CPU that they have here only in
turn. A control worker with it: `celery -A benchmarks.patient`.
"""

from __future__ import annotations

import os

from msgspec.structs import replace

from mikrom_reconcile import times_and_sizes

times_and_sizes.OBSERVING = replace(
    times_and_sizes.OBSERVING, deadline_s=600.0, report_s=540.0, begin_checks_s=500.0, silent_after_s=5.0
)
if os.environ.get("MIKROM_WORKER_ROLE") == "control":
    from mikrom_reconcile import celery_app

    app = celery_app.app

"""`mikrom logs -f`: what a console says from here on, until Ctrl-C."""

from __future__ import annotations

import time

from mikrom_reconcile.cli.entry import INTERRUPTED
from mikrom_reconcile.cli.terminal import show, warn
from mikrom_reconcile.control.ports import Hosts
from mikrom_reconcile.core.model.errors import MikromError
from mikrom_reconcile.limits import OUTPUT
from mikrom_reconcile.output.text import console_text


def follow(hosts: Hosts, host: str, vm: str, end: int) -> int:
    """Show what comes after `end`, line by line: an escape sequence that is half there could not be told from text."""
    pending, dark = b"", False
    try:
        while True:
            time.sleep(OUTPUT.follow_poll_s)
            try:
                console = hosts.console(host, vm, max_bytes=OUTPUT.follow_part_bytes, after=end)
            except MikromError as error:
                if not dark:
                    warn(f"{error}; still trying")
                dark = True
                continue
            dark = False
            said = pending + console.content
            whole = len(said) if not console.content or len(said) > OUTPUT.follow_line_bytes else said.rfind(b"\n") + 1
            show(console_text(said[:whole]))
            pending, end = said[whole:], console.end
    except KeyboardInterrupt:
        return INTERRUPTED

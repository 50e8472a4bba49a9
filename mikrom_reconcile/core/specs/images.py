"""What VMs boot: the images that documents describe, and the one that is built in. Nothing here fetches any."""

from __future__ import annotations

from typing import Any

import msgspec

from mikrom_reconcile.core.model.devices import Boot
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.parsing.variables import unescaped


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's name stands for. No `boot`: the built-in demo guest."""

    boot: Boot | None
    boot_args: str = ""


BUILT_IN = {"hello": Image(boot=None, boot_args="console=ttyS0")}
"""Images that need no document of their own: the demo guest prints its boot arguments and waits for Ctrl-Alt-Del."""


def image_of(spec: dict[str, Any]) -> Image:
    """The image that the `spec` of an Image document describes."""
    return Image(boot=msgspec.convert(spec, ready(Boot)), boot_args=unescaped(spec.get("boot_args", "")))

"""Text that cannot move the cursor, hide or reorder what stands around it.

Names, errors and consoles come from files, guests and other machines; a terminal obeys what they contain.
"""

from __future__ import annotations

import re

_CONTROL = "\x00-\x1f\x7f-\x9f"
_REORDERING = "\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(f"[{_CONTROL}{_REORDERING}\ud800-\udfff]")  # lone surrogates: file names that are no UTF-8
_JSON_UNSAFE = re.compile(f"[\x7f-\x9f{_REORDERING}]")  # what JSON itself would leave as it is
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC and other strings: titles, links, the clipboard
    r"|\x1b[ -/]*[0-~]"  # the short ones: charset, reset
)
_CONSOLE_UNPRINTABLE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_REORDERING}]")


def one_line(text: str) -> str:
    """`text` on one line and as long as before: white space becomes a space, what is no text becomes U+FFFD."""
    return _UNPRINTABLE.sub(_replacement, text)


def console_text(content: bytes) -> str:
    """A serial console as text: lines and tabs stay, escape sequences and control characters go."""
    text = content.decode("utf-8", "replace").replace("\r\n", "\n")
    return _CONSOLE_UNPRINTABLE.sub("", _SEQUENCE.sub("", text))


def json_text(encoded: str) -> str:
    """JSON without any character that a terminal could obey; it means the same."""
    return _JSON_UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", encoded)


def _replacement(match: re.Match[str]) -> str:
    return " " if match.group() in "\t\n\r" else "\ufffd"

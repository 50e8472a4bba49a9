"""Bytes as accidents, other releases and people who mean harm make them of good ones. A seed gives the same again."""

from __future__ import annotations

import re
from random import Random

ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
ODD_TOKENS = (
    *(
        b"",
        b"null",
        b"true",
        b"-1",
        b"0",
        b"1e999",
        b"-0.0",
        b"9" * 40,
        b"[]",
        b"{}",
        b'""',
        b'"\\ud800"',
        b'"\\u0000"',
    ),
    *(
        b"[" * 3000,
        b'{"a":' * 3000,
        b"\xff\xfe",
        b"\x00",
        b"\xed\xa0\x80",
        b"\r\n",
        b"\r\n\r\n",
        b"../../..",
        b"/" * 300,
    ),
    *(b"https://[", b"http://[::1", b"%", b"${", b"&a *a", b"!!python/none", "\u202e\u0661".encode(), b"a" * 5000),
)
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|[A-Za-z_]+|[\[\]{},:=]')


def mutated(corpus: list[bytes], chance: Random) -> bytes:
    """One of the corpus, changed in some places."""
    content = chance.choice(corpus)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        content = chance.choice(CHANGES)(content, chance, corpus)
    return content[: 1 << 17]


def _span(content: bytes, chance: Random) -> tuple[int, int]:
    begin = chance.randint(0, len(content))
    return begin, min(len(content), begin + chance.choice((0, 1, 1, 2, 4, 8, 16, 64, 512)))


def _flipped(content: bytes, chance: Random, _: list[bytes]) -> bytes:
    changed = bytearray(content or b"\0")
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _filled(content: bytes, chance: Random, _: list[bytes]) -> bytes:
    begin, end = _span(content, chance)
    return content[:begin] + chance.choice((b"\0", b"\xff", chance.randbytes(1))) * (end - begin) + content[end:]


def _numbered(content: bytes, chance: Random, _: list[bytes]) -> bytes:
    begin, size = chance.randint(0, len(content)), chance.choice((1, 2, 4, 8))
    number = chance.choice(ODD_NUMBERS) % (1 << 8 * size)
    return content[:begin] + number.to_bytes(size, chance.choice(("little", "big"))) + content[begin + size :]


def _cut(content: bytes, chance: Random, _: list[bytes]) -> bytes:
    begin, end = _span(content, chance)
    return content[:begin] + chance.choice((content[end:], content[end:], b""))


def _doubled(content: bytes, chance: Random, _: list[bytes]) -> bytes:
    begin, end = _span(content, chance)
    return content[:end] + content[begin:end] * chance.choice((1, 1, 2, 30)) + content[end:]


def _spliced(content: bytes, chance: Random, corpus: list[bytes]) -> bytes:
    other = chance.choice(corpus)
    return content[: chance.randint(0, len(content))] + other[chance.randint(0, len(other)) :]


def _reworded(content: bytes, chance: Random, corpus: list[bytes]) -> bytes:
    """A word of it becomes an odd one, or one of another of the corpus."""
    if not (places := list(TOKEN.finditer(content[:20_000]))):
        return content + chance.choice(ODD_TOKENS)
    place, others = chance.choice(places), TOKEN.findall(chance.choice(corpus)[:20_000])
    word = chance.choice(others) if others and chance.random() < 0.4 else chance.choice(ODD_TOKENS)
    return content[: place.start()] + word + content[place.end() :]


CHANGES = (_flipped, _filled, _numbered, _cut, _doubled, _spliced, _reworded, _reworded, _reworded)

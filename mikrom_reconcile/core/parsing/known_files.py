"""Spec files whose documents are known to be good from an earlier reading, by the digest of their text.

Only what depends on nothing but the text, the schemas and the release is remembered; what documents say about one
another is looked at anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, Protocol

import msgspec

from mikrom_reconcile import __version__
from mikrom_reconcile.core.model.digests import digest_of
from mikrom_reconcile.core.model.ready import ready
from mikrom_reconcile.core.model.specs import SourceFile, SourceTree, SpecDocument
from mikrom_reconcile.core.parsing.yaml_words import Spelled


class Cache(Protocol):
    """Bytes by key, which may be lost at any time."""

    def get(self, key: str) -> bytes | None:
        """What was put under `key` last, or None."""

    def put(self, key: str, content: bytes) -> None:
        """Replace what is kept under `key`."""


class NoCache:
    """Keeps nothing."""

    def get(self, key: str) -> bytes | None:
        """Nothing."""

    def put(self, key: str, content: bytes) -> None:
        """Forget it."""


NO_CACHE: Final = NoCache()


class KnownFiles:
    """The good files of one tree, those of its last reading at first."""

    def __init__(self, cache: Cache, tree: SourceTree, schemas: Mapping[str, str]) -> None:
        self._cache = cache
        self._key = digest_of((__version__, schemas, [file.path for file in tree.files])).partition(":")[2]
        self._before = _decoded(cache.get(self._key))
        self._now: dict[str, msgspec.Raw] = {}

    def documents(self, file: SourceFile) -> list[SpecDocument] | None:
        """The documents of `file` if they are known."""
        digest = _digest(file)
        known = self._before.get(digest)
        if known is None:
            return None
        try:
            documents = _DECODER.decode(known)
        except msgspec.MsgspecError:
            return None
        self._now[digest] = known
        return documents

    def add(self, file: SourceFile, documents: list[SpecDocument]) -> None:
        """Remember that `documents` are all that `file` says, and good."""
        self._now[_digest(file)] = msgspec.Raw(_ENCODER.encode(documents))

    def keep(self) -> None:
        """Write down what is known now, if that is not what was known before."""
        if self._now.keys() != self._before.keys():
            self._cache.put(self._key, msgspec.msgpack.encode(self._now))


_ENCODER = msgspec.msgpack.Encoder(enc_hook=lambda number: msgspec.msgpack.Ext(1, str(number).encode()))
_DECODER = msgspec.msgpack.Decoder(ready(list[SpecDocument]), ext_hook=lambda _, word: Spelled(bytes(word).decode()))


def _digest(file: SourceFile) -> str:
    return blake2b(f"{file.path}\0{file.text}".encode(), digest_size=16).hexdigest()


def _decoded(content: bytes | None) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.msgpack.decode(content or b"\x80", type=ready(dict[str, msgspec.Raw]))
    except msgspec.MsgspecError:
        return {}

"""The three places that a container image comes from: each part of it is fetched as a file that has its digest."""

from __future__ import annotations

import base64
import hashlib
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import urlencode, urlsplit

import msgspec

from mikrom_reconcile.core.model.desired import PinnedFile
from mikrom_reconcile.core.model.encoding import UNREADABLE, ready
from mikrom_reconcile.core.specs.images import ARCHIVE, LAYOUT, REGISTRY, Repository, is_loopback, repository_of, tag_of
from mikrom_reconcile.host.oci import manifests
from mikrom_reconcile.host.oci.layers import Budget, opened_tar
from mikrom_reconcile.host.oci.manifests import Config, ContainerImage, Layer, Process, config_of, document_of
from mikrom_reconcile.system.download import FetchError, Opened
from mikrom_reconcile.system.files import OddFileError, read_small
from mikrom_reconcile.system.https_source import opened
from mikrom_reconcile.times_and_sizes import CONTAINER_IMAGES

_DOCKER_HOST = "registry-1.docker.io"
_DOCKER = ("https://index.docker.io/v1/", "docker.io", "registry-1.docker.io")
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """What a token service answers, under either name."""

    token: str = ""
    access_token: str = ""


class _Account(msgspec.Struct, frozen=True):
    auth: str = ""


class _Accounts(msgspec.Struct, frozen=True):
    auths: dict[str, _Account] = {}


def credentials_in(auth_file: Path | None, registry: str) -> str | None:
    """The "user:password" that `docker login` or `podman login` wrote down for a registry. Raises FetchError."""
    if auth_file is None:
        return None
    try:
        content = read_small(auth_file, max_bytes=CONTAINER_IMAGES.document_bytes)
        auths = msgspec.json.decode(content or b"", type=ready(_Accounts)).auths
        names = _DOCKER if registry == _DOCKER_HOST else (registry, f"https://{registry}")
        found = next((auths[name].auth for name in names if name in auths), "")
        return base64.b64decode(found, validate=True).decode() or None
    except (OSError, OddFileError, *UNREADABLE) as error:
        message = f"MIKROM_REGISTRY_AUTH={auth_file} is no file of `docker login`, or unreadable"
        raise FetchError(f"{message}: {type(error).__name__}") from error


def registry_of(image: str, auth_file: Path | None, mirrors: Mapping[str, str]) -> Registry:
    """What `registry/name` is read from on this host. Raises FetchError."""
    try:
        repository = repository_of(image.partition("@")[0], mirrors)
    except ValueError as error:
        raise FetchError(str(error)) from error
    return Registry(repository, credentials_in(auth_file, repository.registry))


class Registry:
    """One repository, read with `credentials` ("user:password"), if there are any."""

    def __init__(self, repository: Repository, credentials: str | None = None) -> None:
        self._repository = repository
        self._basic = credentials and "Basic " + base64.b64encode(credentials.encode()).decode()
        self._authorization: str | None = None

    def url_of(self, kind: str, sha256: str) -> str:
        """Where something is; the kinds are "manifests" and "blobs"."""
        return f"{self._repository.url}/{kind}/sha256:{sha256}"

    def digest_of(self, image: str, *, give_up_at: float) -> str:
        """The digest, in hexadecimal, of what the tag of `image` names now. Raises FetchError."""
        tag = tag_of(image) or "latest"
        try:
            with self.opened(f"{self._repository.url}/manifests/{tag}", offset=0, give_up_at=give_up_at) as answer:
                content = _whole(answer, CONTAINER_IMAGES.document_bytes, "a manifest", give_up_at)
            document_of(content)
        except FetchError as error:
            raise FetchError(f"the tag {tag} of {image}: {error}", lasting=error.lasting) from error
        return hashlib.sha256(content).hexdigest()

    @contextmanager
    def opened(self, url: str, *, offset: int, give_up_at: float) -> Iterator[Opened]:
        """What is there, from `offset` on if the registry can. Raises FetchError."""
        accept = ", ".join((*manifests.INDEXES, *manifests.MANIFESTS)) if "/manifests/" in url else "*/*"
        ask = partial(opened, url, offset=offset, give_up_at=give_up_at, accept=accept)
        with ExitStack() as stack:
            for is_second in (False, True):
                try:
                    content = stack.enter_context(ask(authorization=self._authorization))
                    break
                except FetchError as error:
                    if error.challenge is None:
                        raise
                    if is_second:
                        raise self._refusal() from error
                    self._authorization = self._let_in(error.challenge, give_up_at)
            yield content

    def _refusal(self) -> FetchError:
        whom = "whoever has these credentials" if self._basic else "anybody without credentials"
        return FetchError(f"{self._repository.registry} does not let {whom} read it")

    def _let_in(self, challenge: str, give_up_at: float) -> str:
        """The header that a registry asks for. Raises FetchError."""
        scheme, _, rest = challenge.partition(" ")
        said = dict(_PARAMETER.findall(rest))
        if scheme.lower() == "basic" and self._basic:
            return self._basic
        if scheme.lower() != "bearer" or "realm" not in said:
            raise self._refusal()
        realm = said["realm"]
        if urlsplit(realm).scheme != "https" and not is_loopback(urlsplit(realm).netloc):
            raise FetchError(f"{self._repository.registry} sends for a token to {realm}, which is not https")
        query = {"scope": said.get("scope", f"repository:{self._repository.name}:pull")}
        query.update({key: said[key] for key in ("service",) if key in said})
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
        with opened(url, offset=0, give_up_at=give_up_at, authorization=self._basic) as answer:
            content = _whole(answer, CONTAINER_IMAGES.token_bytes, "a token", give_up_at)
        try:
            found = msgspec.json.decode(content, type=ready(Token))
        except UNREADABLE as error:
            raise FetchError(f"{realm} answers with no token: {error}", lasting=False) from error
        return f"Bearer {found.token or found.access_token}"


def _whole(answer: Opened, max_bytes: int, what: str, give_up_at: float) -> bytes:
    content = bytearray()
    for piece in answer.pieces(give_up_at):
        content += piece
        if len(content) > max_bytes:
            raise FetchError(f"its answer is more than {what}")
    return bytes(content)


Fetch = Callable[[PinnedFile, Registry | None], Path]
"""Puts a file into the host's cache, unless it is there, from a registry, if it is one's, and checks its digest; where
it is then. Raises FetchError and OSError.
"""


class Saved(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """An image in a file of `docker save`."""

    config: str
    layers: tuple[str, ...]


def image_of(file: PinnedFile, fetch: Fetch, registry: Callable[[str], Registry], *, max_bytes: int) -> ContainerImage:
    """The image, with all of its parts on this host. Raises FetchError and OSError."""
    if file.source.startswith(ARCHIVE):
        archive = PinnedFile(source=file.source.removeprefix(ARCHIVE), sha256=file.sha256)
        return _saved_image(fetch(archive, None), max_bytes)
    if file.source.startswith(LAYOUT):
        blobs = f"{file.source.removeprefix(LAYOUT).rstrip('/')}/blobs/sha256"
        return _assembled(file.sha256, lambda _, name: fetch(PinnedFile(source=f"{blobs}/{name}", sha256=name), None))
    found = registry(file.source.removeprefix(REGISTRY))

    def path_of(kind: str, sha256: str) -> Path:
        return fetch(PinnedFile(source=found.url_of(kind, sha256), sha256=sha256), found)

    return _assembled(file.sha256, path_of)


def _assembled(sha256: str, path_of: Callable[[str, str], Path]) -> ContainerImage:
    manifest = document_of(_read(path_of("manifests", sha256)))
    if manifest.config is None:
        manifest = document_of(_read(path_of("manifests", manifests.manifest_in(manifest).sha256)))
    if manifest.config is None:
        raise FetchError("its index leads to another index")
    layers = manifests.layers_of(manifest)
    config = config_of(_read(path_of("blobs", manifest.config.sha256)), len(layers))
    return _image(config, (partial(_opened, path_of("blobs", layer.sha256)) for layer in layers))


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _image(config: Config, opened: Iterable[Callable[[], AbstractContextManager[BinaryIO]]]) -> ContainerImage:
    layers = (Layer(diff_id=diff_id, opened=each) for diff_id, each in zip(config.rootfs.diff_ids, opened, strict=True))
    return ContainerImage(process=config.config or Process(), layers=tuple(layers))


def _read(path: Path) -> bytes:
    try:
        return read_small(path, max_bytes=CONTAINER_IMAGES.document_bytes) or b""
    except OddFileError as error:
        raise FetchError(f"its manifest or configuration is none: {error}") from error


def _saved_image(archive: Path, max_bytes: int) -> ContainerImage:
    with _saved(archive, max_bytes) as tar:
        images = manifests.decoded(_content(tar, "manifest.json"), tuple[Saved, ...])
        if len(images) != 1:
            raise FetchError(f"the file has {len(images)} images: save one alone")
        names = images[0].layers
        config = config_of(_content(tar, images[0].config), len(names))
    return _image(config, (partial(_saved_layer, archive, name, max_bytes) for name in names))


@contextmanager
def _saved_layer(archive: Path, name: str, max_bytes: int) -> Iterator[BinaryIO]:
    with _saved(archive, max_bytes) as tar:
        yield _file(tar, name)  # type: ignore[misc]  # it seeks and reads


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    content = _file(tar, name).read(CONTAINER_IMAGES.document_bytes + 1)
    if len(content) > CONTAINER_IMAGES.document_bytes:
        raise FetchError(f"its {name} is too large")
    return content


@contextmanager
def _saved(archive: Path, max_bytes: int) -> Iterator[tarfile.TarFile]:
    budget = Budget(max_bytes, entries=CONTAINER_IMAGES.archive_members)
    with archive.open("rb") as content, opened_tar(content, budget, "r:") as (tar, _):
        yield tar


def _file(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    content = None
    with suppress(KeyError):  # also where it is a link that leads nowhere
        content = tar.extractfile(name)
    if content is None:
        raise FetchError(f"it is no file of `docker save`: {name} is not in it")
    return content

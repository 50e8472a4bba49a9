"""A registry, as the OCI distribution specification has it: what has a digest, behind a token where it wants one."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec

from mikrom_reconcile.core.model.encoding import UNREADABLE, ready
from mikrom_reconcile.core.specs.images import Repository, is_loopback, repository_of, tag_of
from mikrom_reconcile.host.oci.manifests import INDEXES, MANIFESTS, document_of
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
        raise FetchError(f"{message}: {type(error).__name__}", lasting=True) from error


def registry_of(image: str, auth_file: Path | None, mirrors: Mapping[str, str]) -> Registry:
    """What `registry/name` is read from on this host. Raises FetchError."""
    try:
        repository = repository_of(image.partition("@")[0], mirrors)
    except ValueError as error:
        raise FetchError(str(error), lasting=True) from error
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
        accept = ", ".join((*INDEXES, *MANIFESTS)) if "/manifests/" in url else "*/*"
        with ExitStack() as stack:
            for is_second in (False, True):
                found = opened(
                    url, offset=offset, give_up_at=give_up_at, accept=accept, authorization=self._authorization
                )
                try:
                    content = stack.enter_context(found)
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
        return FetchError(f"{self._repository.registry} does not let {whom} read it", lasting=True)

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
            message = f"{self._repository.registry} sends for a token to {realm}, which is not https"
            raise FetchError(message, lasting=True)
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
            raise FetchError(f"its answer is more than {what}", lasting=True)
    return bytes(content)

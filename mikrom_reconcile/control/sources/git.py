"""Specs from a git repository: only a new commit is fetched, and read without a checkout; git runs nothing of it."""

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from mikrom_reconcile.control.sources.files import ABBREVIATED, checked_size, files_of, made_by, refuse_part
from mikrom_reconcile.core.model.documents import SourceFile, SourceTree
from mikrom_reconcile.core.model.encoding import digest_of
from mikrom_reconcile.core.model.errors import SourceError, SpecError, UsageError
from mikrom_reconcile.core.parsing.documents import SUFFIXES, looks_like_a_spec, sorted_out
from mikrom_reconcile.system.files import OddFileError, read_small
from mikrom_reconcile.times_and_sizes import SPECS

PREFIX = "git+"

PROTOCOLS = ("https", "http", "ssh", "git", "file")  # those that only fetch; `ext::` and its like run programs

_REF = re.compile(r"(?!.*(?:\.\.|//|@\{|\.lock$|/$))[A-Za-z0-9_][A-Za-z0-9_.+/-]*")
_HOST = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:\]-]*")

_FETCHED = "refs/mikrom/specs"
_QUIET = ["-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", "-c", "fetch.recurseSubmodules=false"]
_LIMITED = ["sh", "-c", 'ulimit -f "$0" && exec "$@"']
"""Runs a program that, as what it starts, may write files of so many blocks: the limit is there before it begins."""

_PLACES = ("DIR", "WORK_TREE", "INDEX_FILE", "OBJECT_DIRECTORY", "COMMON_DIR", "NAMESPACE")
_ELSEWHERE = {"SSH_ASKPASS", *(f"GIT_{name}" for name in _PLACES)}

_KEYRINGS = ("pubring.kbx", "pubring.gpg", "public-keys.d/pubring.db")  # as releases of GnuPG call it

Listing = Mapping[str, list[str]]  # path to mode, kind, object and size of everything in a commit


class Signers(msgspec.Struct, frozen=True, kw_only=True):
    """Whom MIKROM_GIT_ALLOWED_SIGNERS and MIKROM_GIT_GNUPGHOME name; a kind of key that neither names signs nothing."""

    ssh: Path | None = None
    gpg: Path | None = None

    def identity(self) -> str:
        """A digest of their keys as they are now; "" where nobody has to sign."""
        keys = []
        for path in (self.ssh, *(self.gpg / name for name in _KEYRINGS if self.gpg)):
            with suppress(OSError, OddFileError):  # git says so, too, and verifies nothing with it
                keys.append(((path and read_small(path, max_bytes=SPECS.keys_bytes)) or b"").hex())
        return digest_of(keys) if self.ssh or self.gpg else ""

    def options(self) -> list[str]:
        """What tells git whom to believe, whatever its other configuration says."""
        told = {
            "gpg.ssh.allowedSignersFile": str(self.ssh or "/dev/null"),
            "gpg.ssh.program": shutil.which("ssh-keygen") or "false",
            "gpg.program": (shutil.which("gpg") if self.gpg else None) or "false",
            "gpg.x509.program": "false",
            "gpg.minTrustLevel": "undefined",  # who is in the keyring is believed
        }
        return [word for name, value in told.items() for word in ("-c", f"{name}={value}")]

    def environment(self) -> dict[str, str]:
        """What keeps git and gpg from any other configuration and keys."""
        return {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GNUPGHOME": str(self.gpg or "/gone")}


def _problem_of(url: str, ref: str, folder: str) -> str | None:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError as error:
        return str(error)
    if parts.scheme not in PROTOCOLS or not url.startswith(f"{parts.scheme}://"):
        return f"its protocol must be one of {', '.join(PROTOCOLS)}"
    if parts.password is not None:
        return "no password in it: git has credential helpers and keys of its own"
    if parts.scheme != "file" and (not _HOST.fullmatch(parts.hostname or "") or not port_is_fine):
        return "it names no host"
    if (parts.username or "").startswith("-") or not parts.path.strip("/") or not url.isprintable() or " " in url:
        return "this is no address of a repository"
    if not _REF.fullmatch(ref):
        return f"{ref!r} is no branch, tag or commit"
    if folder.startswith("-") or ".." in folder.split("/") or not folder.isprintable():
        return f"{folder!r} is no folder of a repository"
    return None


@dataclass(eq=False, repr=False)
class GitSource:
    """Every spec file, but hidden ones, below a `folder` of what `ref` names ("HEAD", a branch, a tag or a whole commit
    id) in a repository, signed by one of `signers`, if there are any.
    """

    url: str
    ref: str
    folder: str
    signers: Signers = field(default_factory=Signers)
    limit_s: float = SPECS.git_fetch_s
    _give_up_at: float = 0.0

    @classmethod
    def of(cls, text: str, **options: Any) -> Self:
        """What the address `text` names. Raises UsageError that says what is wrong with it."""
        before, _, folder = text.removeprefix(PREFIX).partition("#")
        path_at = before.find("/", before.find("://") + 3)
        at = before.rfind("@", max(0, path_at))
        url, ref = (before, "HEAD") if at < 0 else (before[:at], before[at + 1 :])
        if problem := _problem_of(url, ref, folder):
            shown = re.sub(r"//[^/@]*@", "//***@", url)  # it may have a secret
            raise UsageError(f"{PREFIX}{shown}: {problem}; example: git+https://host/repo@main#specs")
        return cls(url, ref, folder.strip("/"), **options)

    def read(self, known: SourceTree | None = None) -> SourceTree:
        """The specs as they are there now, which came after `known`, or are those again. Raises SourceError."""
        self._give_up_at = time.monotonic() + self.limit_s
        name, commit = self._there_now()
        if known is not None and known.revision == commit[:ABBREVIATED]:
            return known
        with tempfile.TemporaryDirectory(prefix="mikrom-git-") as folder:
            here = f"--git-dir={folder}"
            self._git("init", "--quiet", "--bare", folder)
            options = ["--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules"]
            self._git(here, "fetch", *options, "--", self.url, f"+{name}:{_FETCHED}")
            told = self._git(here, "show", "--no-patch", "--format=%H%n%an <%ae>", f"{_FETCHED}^{{commit}}")
            whole, _, author = told.decode(errors="replace").strip().partition("\n")
            commit = whole[:ABBREVIATED]
            try:
                verified_by = self._verify(here, whole)
                if known is not None and name != whole:
                    self._refuse_forced(here, name, whole, known.revision)
                about = {"revision": commit, "author": author, "verified_by": verified_by, "commit": whole}
                return SourceTree(files=self._files(here, commit), **about)
            except (SourceError, SpecError, UsageError) as error:
                error.add_note(made_by(whole, author))
                raise

    def _verify(self, here: str, commit: str) -> str:
        """Whose keys those are of which one signed it; "" where that is not asked. Raises SourceError."""
        if not (identity := self.signers.identity()):
            return ""
        try:
            self._git(*self.signers.options(), here, "verify-commit", commit, **self.signers.environment())
        except SourceError as error:
            why = str(error).removeprefix(f"{self.url}: ").replace("exit code 1", "it is not signed")
            raise SourceError(f"no signature of somebody who may sign here: {why}; see docs/trust.md") from error
        return identity

    def _refuse_forced(self, here: str, name: str, commit: str, known: str) -> None:
        """Raises SourceError unless the commit came after the `known` one. A server that can sends commits alone."""
        # --unshallow would fail where all is there
        options = ["--quiet", "--filter=tree:0", "--depth=2147483647", "--no-tags", "--no-recurse-submodules"]
        self._git(here, "fetch", *options, "--", self.url, f"+{name}:refs/mikrom/history")
        history = self._git(here, "rev-list", commit).decode().splitlines()
        if not any(earlier.startswith(known) for earlier in history):
            raise SourceError(
                f"its history lacks {known}, which was in use: {self.ref} was forced. To take it all the same:"
                f" `mikrom accept {commit[:ABBREVIATED]}`, see docs/trust.md"
            )

    def _files(self, here: str, commit: str) -> tuple[SourceFile, ...]:
        said = self._git(here, "ls-tree", "-r", "-z", "--long", "--full-tree", _FETCHED).decode("utf-8", "replace")
        lines = (line.partition("\t") for line in said.split("\0")[:-1])
        listing = {path: about.split() for about, _, path in lines}
        read, looked_at, refused = self._blobs(listing)
        blobs, outside = read | looked_at, self._outside(listing)
        asked = "".join(f"{blob}\n" for blob in (*blobs.values(), *outside.values()))
        content = _contents(self._git(here, "cat-file", "--batch", said=asked))
        contents = dict(zip(blobs, content, strict=False))
        refused += [path for path in looked_at if looks_like_a_spec(contents[path][: SPECS.head_bytes])]
        where = f"{self.url}#{self.folder} at {commit}"
        found = ((path, contents[path]) for path in read)
        files = files_of(found, where=where, refused=sorted(refused))
        refuse_part(files, zip(outside, content, strict=True))
        return files

    def _there_now(self) -> tuple[str, str]:
        """The full name of the ref, and its commit."""
        ref = self.ref
        if re.fullmatch("[0-9a-f]{40}", ref):
            return ref, ref
        names = [ref, f"refs/heads/{ref}", f"refs/tags/{ref}"]
        said = self._git("ls-remote", "--quiet", "--", self.url, *names, f"refs/tags/{ref}^{{}}").decode()
        there = {name: commit for commit, name in (line.split("\t") for line in said.splitlines())}
        for name in names:
            if name in there:
                return name, there.get(f"{name}^{{}}", there[name])
        raise SourceError(f"{self.url} has no branch, tag or ref {ref}")

    def _blobs(self, listing: Listing) -> tuple[dict[str, str], dict[str, str], list[str]]:
        """Path to object of the spec files and of those to look at; and paths to refuse. Raises SourceError."""
        below = f"{self.folder}/" if self.folder else ""
        there = [path for path in listing if path.startswith(below) and not re.search(r"(^|/)\.", path)]
        found: dict[str, dict[str, str]] = {"read": {}, "look": {}, "refuse": {}}
        total = 0
        for path, what in sorted_out(there):
            mode, kind, blob, size = listing[path]
            if kind == "blob" and mode != "120000":
                if what == "look" and int(size) > SPECS.misnamed_bytes:
                    continue
                total = checked_size(path, total + int(size)) if what == "read" else total
                found[what][path] = blob
            elif what != "look":
                raise SourceError(f"{path} in {self.url} is a link; specs from git are plain files")
        return found["read"], found["look"], [*found["refuse"]]

    def _outside(self, listing: Listing) -> dict[str, str]:
        above = {*PurePosixPath(self.folder).parents} if self.folder else set()
        files = {path: blob for path, (mode, _, blob, _) in listing.items() if mode.startswith("100")}
        specs = (path for path in files if path.lower().endswith(SUFFIXES) and PurePosixPath(path).parent in above)
        return {path: files[path] for path in specs}

    def _git(self, *arguments: str, said: str = "", **variables: str) -> bytes:
        if shutil.which("git") is None:
            raise SourceError("cannot start git: is it installed?")
        try:
            command = [*_LIMITED, str(SPECS.git_file_bytes // 512), "git", *_QUIET, *arguments]
            env = _environment() | variables
            # in a session of its own, so that its ssh ends with it
            process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env, start_new_session=True)
        except OSError as error:
            raise SourceError(f"cannot start git: {error.strerror}") from error
        try:
            answer, complaint = process.communicate(said.encode(), max(0.1, self._give_up_at - time.monotonic()))
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, TimeoutExpired):
                raise SourceError(f"{self.url}: no answer within {self.limit_s:g} s") from None
            raise
        if process.returncode:
            said_why = complaint.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
            why = next((line for line in said_why if line.startswith(("fatal:", "error:"))), said_why[-1])
            large = f"would write {SPECS.git_file_bytes >> 20} MiB; is this a repository of specs?"
            raise SourceError(f"{self.url}: {why.replace('died of signal 25', large)}")
        return answer


def _environment() -> dict[str, str]:
    """This process's, without what would lead git elsewhere; it never asks a person, but may ask GIT_ASKPASS."""
    kept = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    own = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_ALLOW_PROTOCOL": ":".join(PROTOCOLS)}
    return {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes", **kept, **own}


def _contents(batch: bytes) -> Iterator[bytes]:
    """The contents in an answer of `cat-file --batch`: a line with the size, the content, a line break."""
    at = 0
    while at < len(batch):
        end = batch.index(b"\n", at)
        size = int(batch[at:end].split()[2])
        yield batch[end + 1 : end + 1 + size]
        at = end + size + 2

"""Commits that have to be signed, and branches that were forced: made by the real git, ssh-keygen and gpg."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.control.sources.git import Signers
from mikrom_reconcile.control.sources.last_good import LastGood
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.errors import SourceError, UsageError
from mikrom_reconcile.settings import load
from tests.unit.control.test_git_source import Repository

WEB = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: %d, template: {image: hello}}\n"
UNSIGNED = "no signature of somebody who may sign here"


class Signed(Repository):
    """A repository in which commits are signed, and a key of Ana and one of Mallory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.allowed = folder.parent / "allowed_signers"
        for name in ("ana", "mallory"):
            self.key(name)
        self.allow("ana")

    def key(self, name: str) -> Path:
        path = self.folder.parent / name
        if not path.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        return path

    def allow(self, *names: str) -> None:
        lines = (
            f'{name}@example.net namespaces="git" {self.key(name).with_suffix(".pub").read_text()}' for name in names
        )
        self.allowed.write_text("".join(lines))

    def signed(self, name: str, text: str) -> str:
        (self.folder / "specs").mkdir(exist_ok=True)
        (self.folder / "specs" / "web.yml").write_text(text)
        self.git("add", "-A")
        self.git("-c", "gpg.format=ssh", "-c", f"user.signingkey={self.key(name)}", "commit", "-qS", "-m", "change")
        return self.git("rev-parse", "HEAD")

    def read(self, known: SourceTree | None = None) -> SourceTree:
        return self.source(signers=Signers(ssh=self.allowed, gpg=None)).read(known)

    def last_good(self, **more: str) -> LastGood:
        """As a control worker that has just started has it."""
        settings = {"MIKROM_STATE_DIR": str(self.folder.parent / "state")}
        settings["MIKROM_SPECS"] = f"git+file://{self.folder}@main#specs"
        return wiring.make_source(load(settings | {"MIKROM_GIT_ALLOWED_SIGNERS": str(self.allowed)} | more))


@pytest.fixture
def repository(tmp_path: Path) -> Signed:
    return Signed(tmp_path / "repository")


def test_only_a_commit_that_one_of_the_signers_signed_is_read(repository: Signed) -> None:
    commit = repository.signed("ana", "good")
    assert repository.read().revision == commit[:12]
    repository.signed("mallory", "bad")
    with pytest.raises(SourceError, match=f"{UNSIGNED}: No principal matched"):
        repository.read()
    repository.commit(web="bad")
    with pytest.raises(SourceError, match=f"{UNSIGNED}: it is not signed; see docs/trust.md") as told:
        repository.read()
    assert told.value.__notes__ == [f"{repository.git('rev-parse', 'HEAD')} by a test <test@example.net>"]
    repository.signed("ana", "good again")
    assert repository.read().files[0].text == "good again"


def test_a_signature_of_something_else_is_none(repository: Signed) -> None:
    repository.signed("ana", "good")
    whole = repository.git("cat-file", "commit", "HEAD")
    (repository.folder / "specs" / "web.yml").write_text("bad")
    repository.git("add", "-A")
    tree = repository.git("write-tree")
    forged = repository.folder.parent / "forged"
    forged.write_text(f"tree {tree}\n{whole.partition(chr(10))[2]}\n")
    repository.git("reset", "-q", "--hard", repository.git("hash-object", "-w", "-t", "commit", str(forged)))
    with pytest.raises(SourceError, match=UNSIGNED):
        repository.read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpg.ssh.allowedSignersFile", "{all}"),
        ("gpg.ssh.program", "{liar}"),
    ],
)
def test_no_other_configuration_of_git_weakens_it(
    repository: Signed, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    everybody = repository.folder.parent / "all"
    everybody.write_text(f"* {repository.key('mallory').with_suffix('.pub').read_text()}")
    liar = repository.folder.parent / "liar"
    liar.write_text("#!/bin/sh\ncat >/dev/null\necho 'Good \"git\" signature for ana with ED25519 key SHA256:x'\n")
    liar.chmod(0o755)
    repository.signed("mallory", "bad")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", name)
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", value.format(all=everybody, liar=liar))
    trusting = [] if "{all}" in value else ["-c", f"gpg.ssh.allowedSignersFile={repository.allowed}"]
    repository.git(*trusting, "verify-commit", "HEAD")  # git by itself believes it
    with pytest.raises(SourceError, match=UNSIGNED):
        repository.read()


@pytest.mark.parametrize("content", [None, "", "no key\n"])
def test_signers_that_cannot_be_read_are_nobody_until_they_are_back(repository: Signed, content: str | None) -> None:
    repository.signed("ana", WEB % 1)
    source = repository.last_good()
    good = source.poll().good
    repository.signed("ana", WEB % 2)
    repository.allowed.unlink() if content is None else repository.allowed.write_text(content)
    found = source.poll()
    assert (found.good, UNSIGNED in found.problem) == (None, True)
    repository.allow("ana")
    repository.commit(web="unsigned")
    assert source.poll().good == good


def test_an_unsigned_and_a_forced_commit_leave_the_last_good_one_in_use_and_a_person_decides(
    repository: Signed,
) -> None:
    repository.signed("ana", WEB % 1)
    good = repository.last_good().poll().good
    repository.signed("mallory", WEB % 2)
    unsigned = repository.last_good().poll()
    assert unsigned.good == good
    assert unsigned.problem.startswith(f"{unsigned.broken}: {UNSIGNED}")

    repository.git("checkout", "-q", "--orphan", "other")
    forced = repository.signed("ana", WEB % 3)
    repository.git("branch", "-f", "main")
    found = repository.last_good().poll()
    assert found.good == good
    assert f"main was forced. To take it all the same: `mikrom accept {forced[:12]}`" in found.problem
    other = repository.last_good().poll(accept="0" * 12)
    assert (other.good, "this is there now, not 000000000000" in other.problem) == (good, True)
    taken = repository.last_good().poll(accept=forced)
    assert (taken.problem, taken.good and taken.good.tree.revision) == ("", forced[:12])
    assert repository.last_good().poll() == taken


def test_many_commits_between_two_looks_are_no_force(repository: Signed) -> None:
    repository.commit(web="one")
    known = repository.source().read()
    for number in range(5):
        repository.commit(web=str(number))
    repository.git("checkout", "-q", "-b", "side", "HEAD~3")
    repository.commit(db="a side")
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "--no-ff", "-m", "merge", "side")
    assert repository.source().read(known).revision == repository.git("rev-parse", "HEAD")[:12]


def test_who_is_no_signer_any_more_has_signed_nothing_that_is_used(repository: Signed) -> None:
    repository.allow("ana", "mallory")
    repository.signed("mallory", WEB % 1)
    source = repository.last_good()
    assert source.poll().problem == ""
    repository.allow("ana")
    found = source.poll()
    assert (found.good, UNSIGNED in found.problem) == (None, True)


def test_what_was_read_before_signatures_were_asked_for_is_not_used(repository: Signed) -> None:
    repository.commit(web=WEB % 1)
    assert repository.last_good(MIKROM_GIT_ALLOWED_SIGNERS="").poll().problem == ""
    assert repository.last_good().poll().good is None


def test_a_folder_of_scheduled_runs_is_refused_where_commits_are_to_be_signed(repository: Signed) -> None:
    repository.commit(web=WEB % 1)
    found = repository.last_good(MIKROM_SPECS=str(repository.folder / "specs")).poll()
    assert "MIKROM_SPECS is no git+ address" in found.problem
    settings = load({"MIKROM_GIT_ALLOWED_SIGNERS": str(repository.allowed), "MIKROM_SPECS": "/nowhere"})
    with pytest.raises(UsageError):
        wiring.read_tree(settings, ())
    assert wiring.read_tree(settings, [str(repository.folder / "specs")]).files, "what a person names is read"


@pytest.fixture
def gpg(tmp_path: Path) -> Iterator[Path]:
    """A keyring with a key that signs, in a folder whose path is short enough for the agent's socket."""
    home = tmp_path / "gpg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-gen-key", "test@example.net", "ed25519", "sign"], check=True, capture_output=True)
    yield home
    for each in (home, tmp_path / "keyring"):
        subprocess.run(["gpgconf", "--homedir", str(each), "--kill", "all"], check=True)


def test_a_gpg_signature_counts_where_its_keyring_is_named_and_nowhere_else(repository: Signed, gpg: Path) -> None:
    (repository.folder / "specs").mkdir()
    (repository.folder / "specs" / "web.yml").write_text("good")
    repository.git("add", "-A")
    sign = ["-c", "user.signingkey=test@example.net", "commit", "-qS", "-m", "change"]
    environ = os.environ | {"GNUPGHOME": str(gpg)}
    who = ["-c", "user.name=a test", "-c", "user.email=test@example.net"]
    subprocess.run(["git", *who, *sign], cwd=repository.folder, check=True, capture_output=True, env=environ)
    keyring = repository.folder.parent / "keyring"
    keyring.mkdir(mode=0o700)
    only = Signers(ssh=None, gpg=keyring)
    with pytest.raises(SourceError, match=f"{UNSIGNED}: .*No public key"):
        repository.source(signers=only).read()
    exported = subprocess.run(["gpg", "--homedir", str(gpg), "--export"], check=True, capture_output=True).stdout
    subprocess.run(
        ["gpg", "--homedir", str(keyring), "--quiet", "--import"], input=exported, check=True, capture_output=True
    )
    assert repository.source(signers=only).read().files[0].text == "good"
    assert repository.source(signers=Signers(ssh=repository.allowed, gpg=keyring)).read().verified_by
    with pytest.raises(SourceError, match=UNSIGNED):
        repository.read()
    repository.signed("ana", "by ssh")
    with pytest.raises(SourceError, match=UNSIGNED):
        repository.source(signers=only).read()

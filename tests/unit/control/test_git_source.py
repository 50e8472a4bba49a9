"""Specs from a git repository, read by the real git over its real protocols."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mikrom_reconcile.control.sources.git import GitSource
from mikrom_reconcile.core.model.documents import SourceTree
from mikrom_reconcile.core.model.errors import SourceError, SpecError, UsageError
from mikrom_reconcile.times_and_sizes import SPECS
from tests.fleet import wait_until


class Repository:
    """A repository with a work tree, in which a test commits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=a test", "-c", "user.email=test@example.net", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *arguments], cwd=self.folder, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, **files: str) -> str:
        """Write `specs/<name>.yml`, commit all there is, and the commit's id."""
        for name, text in files.items():
            path = self.folder / "specs" / f"{name}.yml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "change")
        return self.git("rev-parse", "HEAD")

    def source(self, rest: str = "@main#specs", **options: Any) -> GitSource:
        return GitSource.of(f"git+file://{self.folder}{rest}", **options)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def texts(tree: SourceTree) -> dict[str, str]:
    return {file.path: file.text for file in tree.files}


def test_the_files_of_a_folder_come_with_the_commit_as_revision(repository: Repository) -> None:
    commit = repository.commit(web="web\n", db="db ä\n")
    (repository.folder / "other.yml").write_text("not in the folder")
    (repository.folder / "specs" / ".hidden.yml").write_text("hidden")
    (repository.folder / "specs" / "notes.md").write_text("no specs")
    commit = repository.commit()
    tree = repository.source().read()
    assert tree.revision == commit[:12]
    assert texts(tree) == {"specs/db.yml": "db ä\n", "specs/web.yml": "web\n"}
    whole = repository.source("@main").read()
    assert sorted(texts(whole)) == ["other.yml", "specs/db.yml", "specs/web.yml"]
    assert sorted(texts(repository.source("").read())) == sorted(texts(whole))


@pytest.mark.parametrize("ref", ["main", "refs/heads/main", "v1", "release/1.0", "{commit}"])
def test_a_branch_a_tag_and_a_commit_are_found(repository: Repository, ref: str) -> None:
    commit = repository.commit(web="wanted")
    repository.git("branch", "other/main")  # ends like main, and is not meant
    repository.git("branch", "release/1.0")
    repository.git("tag", "-m", "a tag with an object of its own", "v1")
    if ref != "main":
        repository.commit(web="newer")
        if ref == "refs/heads/main":
            commit = repository.git("rev-parse", "HEAD")
    tree = repository.source(f"@{ref.format(commit=commit)}#specs").read()
    assert tree.revision == commit[:12]


def test_a_commit_that_is_known_is_not_fetched_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.commit(web="one")
    source = repository.source()
    known = source.read()
    with monkeypatch.context() as broken:
        broken.setattr("tempfile.TemporaryDirectory", lambda **_: pytest.fail("it fetches"))
        assert source.read(known) is known
    repository.commit(web="two")
    assert texts(source.read(known)) == {"specs/web.yml": "two"}


@pytest.mark.parametrize(
    ("rest", "complaint"),
    [
        ("@no-such-branch", "has no branch, tag or ref no-such-branch"),
        ("@main#no/such/folder", "no *.yml or *.yaml file in"),
        ("-gone@main", "does not appear to be a git repository"),
        (f"@{'0' * 40}", "0000000"),
    ],
)
def test_what_is_not_there_is_told_and_never_an_empty_tree(repository: Repository, rest: str, complaint: str) -> None:
    repository.commit(web="one")
    with pytest.raises(SourceError) as told:
        repository.source(rest).read()
    assert complaint in str(told.value)


def test_a_link_in_the_repository_is_refused_whatever_it_leads_to(repository: Repository) -> None:
    repository.commit(web="one")
    (repository.folder / "specs" / "passwd.yml").symlink_to("/etc/passwd")
    repository.commit()
    with pytest.raises(SourceError, match=r"specs/passwd.yml in .* is a link"):
        repository.source().read()


def test_a_repository_that_would_fill_the_disk_is_given_up(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository.folder / "large").write_bytes(os.urandom(2 << 20))
    repository.commit(web="one")
    monkeypatch.setattr("mikrom_reconcile.control.sources.git.SPECS", replace(SPECS, git_file_bytes=1 << 20))
    with pytest.raises(SourceError, match=r"would write 1 MiB; is this a repository of specs?"):
        repository.source().read()


def test_what_looks_like_a_spec_is_refused_by_name_and_the_rest_is_left_alone(repository: Repository) -> None:
    repository.commit(web="apiVersion: mikrom/v1")
    for name in ("README.md", "web.yml~", "group_vars/kvm"):
        path = repository.folder / "specs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("apiVersion: mikrom/v1" if name.startswith("web") else "# mikrom/v1 is\nspec ")
    (repository.folder / "specs" / "large").write_text("apiVersion: mikrom/v1\n" + "#" * (1 << 20))
    repository.commit()
    assert [*texts(repository.source().read())] == ["specs/group_vars/kvm", "specs/web.yml"]
    (repository.folder / "specs" / "db.yaml.off").write_text("apiVersion: mikrom/v1")
    repository.commit()
    with pytest.raises(SpecError) as raised:
        repository.source().read()
    assert [problem.path for problem in raised.value.problems] == ["specs/db.yaml.off"]


def test_no_hook_no_filter_and_no_attribute_changes_what_is_read(repository: Repository) -> None:
    repository.commit(web="$Id$ as written\n")
    (repository.folder / ".gitattributes").write_text("*.yml export-ignore ident text eol=crlf\n")
    repository.commit()
    assert texts(repository.source().read()) == {"specs/web.yml": "$Id$ as written\n"}


def test_nothing_is_left_behind(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.commit(web="one")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    repository.source().read()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_server_that_never_answers_is_given_up_with_all_that_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\necho $$ > {pid_file}\nexec sleep 60\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"no answer within 0.5 s"):
        GitSource.of("git+ssh://git@example.net/repo", limit_s=0.5).read()
    assert time.monotonic() - began < 30  # it would be 60
    wait_until(lambda: not Path(f"/proc/{pid_file.read_text().strip()}").exists(), "the end of ssh")


class LockedServer:
    """An HTTP server that wants credentials, and keeps those that it was given."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"git+http://127.0.0.1:{self._socket.getsockname()[1]}/repo"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._socket.accept()
            with client:
                asked = client.recv(65536).decode()
                given = re.search(r"^Authorization: Basic (\S+)", asked, re.MULTILINE)
                if given:
                    self.given.append(base64.b64decode(given[1]).decode())
                status = "404 Not Found" if given else "401 Unauthorized\r\nWWW-Authenticate: Basic realm=x"
                client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


@pytest.fixture
def locked() -> LockedServer:
    return LockedServer()


def test_git_never_asks_for_a_password(locked: LockedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_ASKPASS", "/bin/false")
    with pytest.raises(SourceError, match=r"could not read Username"):
        GitSource.of(locked.address, limit_s=10).read()


@pytest.mark.parametrize("way", ["a credential helper", "GIT_ASKPASS"])
def test_git_uses_the_credentials_of_its_own_configuration(
    locked: LockedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    program = tmp_path / "program"
    if way == "GIT_ASKPASS":
        program.write_text('#!/bin/sh\ncase "$1" in User*) echo ana;; *) echo sesame;; esac\n')
        monkeypatch.setenv("GIT_ASKPASS", str(program))
    else:
        program.write_text("#!/bin/sh\necho username=ana\necho password=sesame\n")
        (tmp_path / "gitconfig").write_text(f"[credential]\nhelper = {program}\n")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    program.chmod(0o755)
    with pytest.raises(SourceError, match="not found") as told:
        GitSource.of(locked.address, limit_s=10).read()
    assert locked.given[-1] == "ana:sesame"
    assert "sesame" not in str(told.value)


@pytest.fixture
def daemon(repository: Repository) -> Iterator[str]:
    """A `git daemon` that serves the repository."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = repository.folder.parent
    argv = [
        "git",
        "daemon",
        "--export-all",
        f"--base-path={folder}",
        "--listen=127.0.0.1",
        f"--port={port}",
        "--reuseaddr",
    ]
    process = subprocess.Popen([*argv, str(folder)], stderr=subprocess.DEVNULL, start_new_session=True)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, "git daemon")
        yield f"git+git://127.0.0.1:{port}/repository@main#specs"
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def test_specs_come_from_a_server(repository: Repository, daemon: str) -> None:
    commit = repository.commit(web="one")
    source = GitSource.of(daemon)
    tree = source.read()
    assert (tree.revision, texts(tree)) == (commit[:12], {"specs/web.yml": "one"})
    commit = repository.commit(web="two")
    assert source.read(tree).revision == commit[:12]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("git+https://example.net/repo.git@main#specs", ("https://example.net/repo.git", "main", "specs")),
        ("git+https://example.net/repo", ("https://example.net/repo", "HEAD", "")),
        (
            "git+ssh://git@example.net:2222/team/repo@v1.2#/a/b/",
            ("ssh://git@example.net:2222/team/repo", "v1.2", "a/b"),
        ),
        ("git+file:///srv/repo.git@release/1.0", ("file:///srv/repo.git", "release/1.0", "")),
    ],
)
def test_an_address_is_taken_apart(text: str, place: tuple[str, str, str]) -> None:
    found = GitSource.of(text)
    assert (found.url, found.ref, found.folder) == place


@pytest.mark.parametrize(
    "hostile",
    [
        "git+ext::sh -c touch% /dev/shm/owned",
        "git+ext://x/repo",
        "git+fd::7",
        "git+-oProxyCommand=x",
        "git+--upload-pack=touch /dev/shm/owned",
        "git+ssh://-oProxyCommand=x/repo",
        "git+ssh://-x@example.net/repo",
        "git+git@example.net:repo",
        "git+/srv/repo",
        "git+https://",
        "git+https://example.net",
        "git+https://example.net:port/repo",
        "git+https://ana:sesame@example.net/repo",
        "git+https://example.net/a b",
        "git+https://example.net/repo@--upload-pack=x",
        "git+https://example.net/repo@-x",
        "git+https://example.net/repo@a..b",
        "git+https://example.net/repo@main:refs/heads/x",
        "git+https://example.net/repo@main#../../etc",
        "git+https://example.net/repo@main#-x",
        "git+https://example.net/repo@main\n",
    ],
)
def test_what_git_would_take_for_something_else_is_refused_before_it_starts(hostile: str) -> None:
    with pytest.raises(UsageError, match="example: git") as told:
        GitSource.of(hostile)
    assert "sesame" not in str(told.value)

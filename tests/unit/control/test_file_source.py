from __future__ import annotations

import os
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from mikrom_reconcile.control.sources.files import read_files
from mikrom_reconcile.core.model.documents import SpecProblem
from mikrom_reconcile.core.model.errors import SourceError, SpecError
from mikrom_reconcile.times_and_sizes import SPECS


def write(path: Path, content: str | bytes = "kind: Fleet\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def paths_read(*given: Path) -> list[str]:
    return [file.path for file in read_files(given).files]


def problem_of(path: Path) -> SpecProblem:
    with pytest.raises(SpecError) as caught:
        read_files([path])
    (problem,) = caught.value.problems
    return problem


def test_all_yaml_files_below_a_folder_are_read_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.yml", "a.yaml", "sub/deep/c.yml", ".hidden.yml", ".git/d.yml", "notes.txt", "e.yml~", "yml"):
        write(tmp_path / name)
    assert paths_read(tmp_path) == [f"{tmp_path}/{name}" for name in ("a.yaml", "b.yml", "sub/deep/c.yml")]


SPEC = "# a fleet\n---\napiVersion: mikrom/v1\nkind: Fleet\n"


def test_suffixes_are_read_in_any_case(tmp_path: Path) -> None:
    for name in ("web.YAML", "db.Yml"):
        write(tmp_path / name)
    assert paths_read(tmp_path) == [f"{tmp_path}/db.Yml", f"{tmp_path}/web.YAML"]


@pytest.mark.parametrize("name", ["web.yml.bak", "web", "web.yaml.disabled", "web.json", "sub/web.yml~", "web.j2"])
def test_what_looks_like_a_spec_is_refused_by_name_and_never_dropped(name: str, tmp_path: Path) -> None:
    text = '{\n  "apiVersion": "mikrom/v1"}' if name.endswith("json") else SPEC
    write(tmp_path / "project.yml")
    write(tmp_path / name, text)
    problem = problem_of(tmp_path)
    assert (problem.path, problem.message) == (
        f"{tmp_path}/{name}",
        "this looks like a spec, and files of that name are not read",
    )
    assert problem.hint == "end its name with .yml, or begin it with a dot to leave it out"


def test_copies_beside_their_file_and_what_is_no_spec_are_left_alone(tmp_path: Path) -> None:
    for name in ("web.yml", "web.yml~", "web.yml.bak", "#web.yml#"):
        write(tmp_path / name, SPEC)
    write(tmp_path / "README.md", f"# Specs\n\nAs in\n\n{SPEC}")
    write(tmp_path / "other.json", '{"kind": "Deployment", "apiVersion": "apps/v1"}')
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "fifo")
    assert paths_read(tmp_path) == [f"{tmp_path}/web.yml"]


def test_files_of_variables_are_read_as_ansible_reads_them(tmp_path: Path) -> None:
    names = (
        "group_vars/kvm",
        "group_vars/gen2.json",
        "group_vars/web/10.yml",
        "group_vars/web/more/20",
        "host_vars/a.example.com",
    )
    for name in (*names, "group_vars/README.md", "group_vars/kvm~", "group_vars/web/10.yml.bak", "group_vars/.kvm.swp"):
        write(tmp_path / name)
    (tmp_path / "group_vars/old").symlink_to("kvm")
    assert paths_read(tmp_path) == [f"{tmp_path}/{name}" for name in sorted((*names, "group_vars/old"))]
    write(tmp_path / "group_vars/web/30.conf")
    assert problem_of(tmp_path).path == f"{tmp_path}/group_vars/web/30.conf"


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    assert paths_read(write(tmp_path / ".fleet.txt")) == [f"{tmp_path}/.fleet.txt"]


def test_a_relative_path_stays_relative_in_what_people_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "specs" / "web.yml")
    monkeypatch.chdir(tmp_path)
    assert paths_read(Path("specs")) == ["specs/web.yml"]


def test_a_file_that_is_reached_twice_is_read_once(tmp_path: Path) -> None:
    file = write(tmp_path / "specs" / "web.yml")
    (tmp_path / "specs" / "alias.yml").symlink_to(file)
    assert paths_read(tmp_path / "specs", file) == [f"{tmp_path}/specs/alias.yml"]


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "shared" / "web.yml")
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "linked").symlink_to(tmp_path / "shared")
    assert paths_read(tmp_path / "specs") == [f"{tmp_path}/specs/linked/web.yml"]


def test_a_loop_of_folders_is_an_error_that_names_it(tmp_path: Path) -> None:
    write(tmp_path / "web.yml")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    with pytest.raises(SourceError, match="sub/up is a symbolic link to a folder that it lies in"):
        read_files([tmp_path])


@pytest.mark.parametrize("target", ["web.yml", "nowhere"])
def test_a_link_to_itself_or_to_nowhere_is_an_error(target: str, tmp_path: Path) -> None:
    (tmp_path / "web.yml").symlink_to(target)
    with pytest.raises(SourceError, match=r"web\.yml: "):
        read_files([tmp_path])


def test_a_fifo_is_an_error_and_nobody_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "web.yml")
    with pytest.raises(SourceError, match="not a regular file"):
        read_files([tmp_path])


def test_a_path_that_is_not_there_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere: No such file or directory; .*MIKROM_SPECS"):
        read_files([tmp_path / "nowhere"])


def test_a_folder_without_a_spec_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "README.md")
    with pytest.raises(SourceError, match=r"no \*\.yml or \*\.yaml file in"):
        read_files([tmp_path])


def test_bytes_that_are_no_utf8_are_told_with_their_place(tmp_path: Path) -> None:
    problem = problem_of(write(tmp_path / "web.yml", "a: 1\nnäme: ".encode() + b"\xe9\n"))
    assert (problem.line, problem.column, problem.message) == (2, 7, "byte 0xe9 is not UTF-8")


def test_a_nul_byte_is_told_with_its_place(tmp_path: Path) -> None:
    problem = problem_of(write(tmp_path / "web.yml", b"a: 1\nb: \0\n"))
    assert (problem.line, problem.column) == (2, 4)


def test_a_file_name_that_is_no_utf8_can_still_be_told(tmp_path: Path) -> None:
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yml")))
    assert paths_read(tmp_path) == [f"{tmp_path}/\ufffd.yml"]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    write(tmp_path / "web.yml", b"\xef\xbb\xbfkind: Fleet\n")
    assert read_files([tmp_path]).files[0].text == "kind: Fleet\n"


def test_a_file_that_is_too_large_is_told_and_never_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "web.yml").open("wb") as file:
        file.truncate(40 * SPECS.file_bytes)
    tracemalloc.start()
    try:
        assert problem_of(tmp_path).message == "this file has more than 10 MiB"
        assert tracemalloc.get_traced_memory()[1] < 4 * SPECS.file_bytes
    finally:
        tracemalloc.stop()


def test_all_files_that_are_no_text_are_told_at_once(tmp_path: Path) -> None:
    for name in ("a.yml", "b.yml"):
        write(tmp_path / name, b"\xff")
    write(tmp_path / "c.yml")
    with pytest.raises(SpecError) as caught:
        read_files([tmp_path])
    assert [problem.path for problem in caught.value.problems] == [f"{tmp_path}/a.yml", f"{tmp_path}/b.yml"]


def test_without_git_the_revision_is_a_digest_of_the_files(tmp_path: Path) -> None:
    file = write(tmp_path / "web.yml")
    first = read_files([tmp_path]).revision
    assert first.startswith("files:")
    assert read_files([tmp_path]).revision == first
    file.write_text("kind: Project\n")
    assert read_files([tmp_path]).revision != first


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_in_a_checkout_the_revision_is_the_commit_and_says_when_files_differ_from_it(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.net", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    file = write(tmp_path / "specs" / "web.yml")
    source = [tmp_path / "specs"]
    git("init", "--quiet")
    assert read_files(source).revision.startswith("files:")
    git("add", ".")
    git("commit", "--quiet", "-m", "specs")
    commit = git("rev-parse", "HEAD")[:12]
    write(tmp_path / "elsewhere.txt")
    assert read_files(source).revision == commit
    file.write_text("kind: Project\n")
    assert read_files(source).revision == f"{commit}-dirty"


def test_a_folder_inside_another_that_is_given_is_no_empty_one(tmp_path: Path) -> None:
    write(tmp_path / "sub" / "web.yml")
    assert paths_read(tmp_path, tmp_path / "sub") == [f"{tmp_path}/sub/web.yml"]

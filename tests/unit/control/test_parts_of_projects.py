"""A part of a project is never taken for a whole one: its fleets would go to the project `default`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mikrom_reconcile import wiring
from mikrom_reconcile.cli import entry
from mikrom_reconcile.core.model.errors import UsageError
from mikrom_reconcile.settings import load

PROJECT = "apiVersion: mikrom/v1\nkind: Project\nmetadata: {name: shop}\n"
FLEET = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 1, template: {image: hello}}\n"
PART = "are a part of the project in .*project.yml"


@pytest.fixture
def shop(own_environment: Path) -> Path:
    (own_environment / "specs" / "front" / "deep").mkdir(parents=True)
    (own_environment / "specs" / "project.yml").write_text(PROJECT)
    for fleet in ("web.yml", "front/api.yml", "front/deep/db.yaml"):
        (own_environment / "specs" / fleet).write_text(FLEET)
    return own_environment


def read(*paths: Path | str, specs: str = "") -> int:
    return len(wiring.read_tree(load({"MIKROM_SPECS": specs}), [str(path) for path in paths]).files)


@pytest.mark.parametrize("path", ["web.yml", "front", "front/", "front/api.yml", "front/deep", "front/../web.yml"])
def test_a_project_beside_or_above_is_not_overlooked(path: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=PART):
        read(shop / "specs" / path)
    with pytest.raises(UsageError, match=PART):
        read(specs=f"{shop}/specs/{path}")
    monkeypatch.chdir(shop / "specs")
    with pytest.raises(UsageError, match=PART):
        read(path)
    monkeypatch.chdir(shop / "specs" / "front")
    with pytest.raises(UsageError, match=PART):
        read(".")


def test_a_link_to_a_part_is_a_part(shop: Path) -> None:
    for name, target in (("web.yml", "specs/web.yml"), ("front", "specs/front"), ("whole", "specs")):
        (shop / name).symlink_to(target)
    for part in ("web.yml", "front", "front/api.yml", "whole/web.yml"):
        with pytest.raises(UsageError, match=PART):
            read(shop / part)
    assert read(shop / "whole") == 4


def test_a_whole_folder_is_read(shop: Path) -> None:
    assert read(shop / "specs") == 4
    assert read(shop) == 4


def test_a_project_that_is_named_itself_is_refused_while_specs_of_it_are_left_out(shop: Path) -> None:
    specs = shop / "specs"
    for some in (["project.yml"], ["project.yml", "web.yml"], ["project.yml", "web.yml", "front/api.yml"]):
        with pytest.raises(UsageError, match=r"yml belongs to the project in .*project.yml|db.yaml belongs"):
            read(*(specs / path for path in some))
    assert read(specs / "project.yml", specs / "web.yml", specs / "front") == 4
    (specs / "compose.yml").write_text("services: {}\n")
    (specs / "front" / "own.yml").write_text(PROJECT.replace("shop", "front"))
    (specs / "other.yml").write_text(PROJECT.replace("shop", "other"))
    assert read(specs / "project.yml", specs / "web.yml") == 2
    (specs / "left.yml").write_text(FLEET)
    with pytest.raises(UsageError, match=r"left.yml belongs to the project in .*project.yml"):
        read(specs=f"{specs}/project.yml")
    specs.chmod(0o1777)  # what others put there must not stop anybody
    assert read(specs / "project.yml") == 1


@pytest.mark.parametrize("above", ["kind: Project\n: [", '{"kind": "Project"}', PROJECT + "---\n" + FLEET])
def test_a_project_counts_however_it_is_written(above: str, shop: Path) -> None:
    (shop / "specs" / "project.yml").write_text(above)
    with pytest.raises(UsageError, match=PART):
        read(shop / "specs" / "front")


@pytest.mark.parametrize(
    "above", ["# kind: Project\n", "a: {kind: Project}\n", "kind: Projector\n", "\0", "- kind: Project\n"]
)
def test_what_only_looks_like_a_project_does_not_count(above: str, shop: Path) -> None:
    (shop / "specs" / "project.yml").write_text(above)
    assert read(shop / "specs" / "front") == 2


def test_a_part_with_a_project_of_its_own_is_whole(shop: Path) -> None:
    (shop / "specs" / "front" / "own.yml").write_text(PROJECT.replace("shop", "front"))
    assert read(shop / "specs" / "front") == 3
    with pytest.raises(UsageError, match=r"part of the project in .*front/own.yml"):
        read(shop / "specs" / "front" / "deep")


def test_nothing_is_looked_for_outside_of_a_checkout_or_where_everybody_writes(shop: Path) -> None:
    (shop / "specs" / "front" / ".git").mkdir()
    assert read(shop / "specs" / "front" / "api.yml") == 1
    (shop / "specs" / "front" / ".git").rmdir()
    (shop / "specs").chmod(0o1777)
    assert read(shop / "specs" / "front" / "api.yml") == 1


@pytest.mark.needs("git")
def test_a_folder_of_a_repository_that_is_one_too_deep_is_refused(shop: Path) -> None:
    git = ["git", "-C", str(shop), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "specs"], ["commit", "-qm", "specs"]):
        subprocess.run([*git, *words], check=True)
    place = f"git+file://{shop}"
    assert [read(place), read(f"{place}#specs")] == [4, 4]
    for folder in ("specs/front", "specs/front/deep"):
        with pytest.raises(UsageError, match=PART):
            read(f"{place}#{folder}")
        with pytest.raises(UsageError, match=PART):
            read(specs=f"{place}#{folder}")


def test_a_file_of_variables_is_no_part_of_anything(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "specs" / "front" / "vars.txt").write_text("size: 64\n")
    assert entry.run(["render", f"{shop}/specs/web.yml", f"-e@{shop}/specs/front/vars.txt"]) == 64
    assert "are a part of the project" in capsys.readouterr().err
    (shop / "specs" / "front" / "api.yml").unlink()
    (shop / "specs" / "front" / "deep" / "db.yaml").unlink()
    reading = FLEET.replace("image: hello", 'image: hello, machine: {mem_size_mib: "${size}"}')
    (shop / "specs" / "web.yml").write_text(reading)
    assert entry.run(["render", f"{shop}/specs", f"-e@{shop}/specs/front/vars.txt"]) == 0

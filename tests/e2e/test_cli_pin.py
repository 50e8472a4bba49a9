"""`mikrom image pin` against a real registry: one text of a file changes, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.command import AS_A_PROGRAM, Mikrom
from tests.container_images import Workshop, a_program, run
from tests.registries import docker_registry

pytestmark = pytest.mark.needs("docker-registry", "skopeo", "umoci")

SPECS = """\
# what we run
apiVersion: mikrom/v1
kind: Project
metadata: {{name: demo}}
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: web}}
spec:
  kernel: {{source: file:///images/k, sha256: {zeros}}}
  rootfs: {{"oci": "{image}", init: mikrom}}   # kept
---
{{"apiVersion": "mikrom/v1", "kind": "Image", "metadata": {{"name": "json"}},
 "spec": {{"kernel": {{"source": "file:///images/k", "sha256": "{zeros}"}},
 "rootfs": {{"oci": "{image}"}}}}}}
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: plain}}
spec:
  kernel: {{source: file:///images/k, sha256: {zeros}}}
  rootfs:
    oci: {image}
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: disk}}
spec:
  kernel: {{source: file:///images/k, sha256: {zeros}}}
  rootfs: {{source: file:///images/r, sha256: {zeros}}}
---
apiVersion: mikrom/v1
kind: Image
metadata: {{name: odd}}
spec:
  kernel: {{source: file:///images/k, sha256: {zeros}}}
  rootfs: {{oci: "\\x31{rest}"}}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """An image by its tag, and its digest."""
    folder = tmp_path_factory.mktemp("registry")
    workshop = Workshop(folder / "workshop")
    workshop.folder.mkdir()
    a_program(workshop)
    with docker_registry(folder) as address:
        name = f"{address}/team/app"
        run("skopeo", "copy", "--dest-tls-verify=false", f"oci:{workshop.layout}:it", f"docker://{name}:1.2")
        yield f"{name}:1.2", workshop.digest()


def specs(folder: Path, image: str, newline: str = "\n") -> Path:
    path = folder / "specs/web.yml"
    text = SPECS.format(image=image, rest=image[1:], zeros="0" * 64).replace("\n", newline)
    path.write_bytes(b"\xef\xbb\xbf" * (newline != "\n") + text.encode())
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_tag_becomes_its_digest_and_nothing_else_of_the_file_changes(
    mikrom: Mikrom, folder: Path, image: tuple[str, str], newline: str
) -> None:
    tagged, digest = image
    path = specs(folder, tagged, newline)
    path.chmod(0o640)
    before = path.read_bytes()
    assert "`mikrom image pin NAME` writes for a tag" in mikrom("validate", code=1).stderr
    for name in ("web", "json", "plain"):
        assert mikrom("image", "pin", name).stdout.endswith(f": {tagged}@sha256:{digest}\n")
    after = path.read_bytes()
    assert after.count(f"@sha256:{digest}".encode()) == 3
    assert after.replace(f"@sha256:{digest}".encode(), b"") == before
    assert (path.stat().st_mode & 0o777, [each.name for each in path.parent.iterdir()]) == (0o640, ["web.yml"])
    assert mikrom("image", "pin", "web", "specs/web.yml").stdout.endswith("(as before)\n")
    path.write_bytes(after.replace(digest.encode(), b"0" * 64))
    mikrom("image", "pin", "plain")
    assert path.read_bytes().count(digest.encode()) == 1, "an older digest is replaced"


def test_images_that_are_pinned_at_once_are_pinned_once_each(
    mikrom: Mikrom, folder: Path, image: tuple[str, str]
) -> None:
    tagged, digest = image
    path = specs(folder, tagged)
    before = path.read_bytes()
    with ThreadPoolExecutor(6) as pool:
        list(
            pool.map(
                lambda name: mikrom("image", "pin", name, code=None, program=AS_A_PROGRAM), ("web", "json", "plain") * 2
            )
        )
    after = path.read_bytes()
    assert (after.count(f"@sha256:{digest}".encode()), after.replace(f"@sha256:{digest}".encode(), b"")) == (3, before)
    assert [each.name for each in path.parent.iterdir()] == ["web.yml"]


def test_what_cannot_be_pinned_says_why_and_changes_nothing(
    mikrom: Mikrom, folder: Path, image: tuple[str, str]
) -> None:
    path = specs(folder, image[0].replace(":1.2", ":9"))
    before = path.read_bytes()
    for words, message in (
        (("wep",), "no Image is called 'wep'; did you mean web?"),
        (("disk",), "the Image disk has no rootfs.oci"),
        (("web",), f"the tag 9 of {image[0].replace(':1.2', ':9')}: the server answers 404"),
        (("web", "git+file:///srv/specs"), "name the files of a checkout"),
        (("web", "nowhere"), "nowhere"),
    ):
        assert message in mikrom("image", "pin", *words, code=None).stderr, words
        assert path.read_bytes() == before
    twice, unclosed = path.with_name("twice.yml"), path.with_name("unclosed.yml")
    twice.write_bytes(before)
    assert (
        "2 Images are called web, in specs/twice.yml and specs/web.yml" in mikrom("image", "pin", "web", code=64).stderr
    )
    unclosed.write_text("spec: {a: [")
    assert "specs/unclosed.yml:1:" in mikrom("image", "pin", "nobody", code=1).stderr
    twice.unlink()
    unclosed.unlink()
    odd = specs(folder, image[0])
    before = odd.read_bytes()
    told = mikrom("image", "pin", "odd", code=64).stderr
    assert re.search(r"it is not written here in one piece; write .*@sha256:", told)
    assert odd.read_bytes() == before

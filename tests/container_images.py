"""Container images for tests, made by other people's tools: umoci, buildah, skopeo and GNU tar.

An image is an OCI layout with one manifest of the tag "it". `IMAGES` names twenty, and what each is good for is its
function's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mikrom_reconcile.host.oci.sources import Registry

PROGRAMS = ("umoci", "skopeo", "buildah", "setcap", "mke2fs", "e2fsck")


def no_registry(name: str) -> Registry:
    raise AssertionError(name)


class Workshop:
    """One image that is being made below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout = folder / "layout"
        self.bundle = folder / "bundle"
        self.rootfs = self.bundle / "rootfs"

    def begin(self) -> None:
        """An image without layers, unpacked."""
        run("umoci", "init", "--layout", str(self.layout))
        run("umoci", "new", "--image", f"{self.layout}:it")
        run("umoci", "unpack", "--image", f"{self.layout}:it", str(self.bundle))

    def commit(self) -> None:
        """What changed in the rootfs becomes a layer."""
        run("umoci", "repack", "--refresh-bundle", "--image", f"{self.layout}:it", str(self.bundle))

    def configure(self, *words: str) -> None:
        run("umoci", "config", "--image", f"{self.layout}:it", *words)

    def tar(self, folder: Path, *words: str) -> None:
        """A layer of what GNU tar makes of a folder."""
        archive = self.folder / "layer.tar"
        run("tar", "-C", str(folder), "-cf", str(archive), *words)
        self.add(archive)

    def add(self, archive: Path) -> None:
        run("umoci", "raw", "add-layer", "--image", f"{self.layout}:it", str(archive))

    def digest(self) -> str:
        """Of the manifest, without its algorithm."""
        return digest_in(self.layout)

    def scratch(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path


def digest_in(layout: Path) -> str:
    found: str = json.loads((layout / "index.json").read_bytes())["manifests"][-1]["digest"]
    return found.removeprefix("sha256:")


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def put(path: Path, content: bytes | str = b"", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def a_program(workshop: Workshop) -> None:
    """The least that can be run: what tests of other things stand on."""
    workshop.begin()
    put(workshop.rootfs / "bin/hello", "#!/bin/sh\n", 0o755)
    workshop.commit()
    workshop.configure("--config.entrypoint", "/bin/hello")


def modes_and_owners(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    os.chown(put(root / "bin/su", "x", 0o4755), 0, 0)
    os.chown(put(root / "etc/shadow", "secret", 0o640), 0, 42)
    os.chown(put(root / "srv/data", "x", 0o600), 70000, 2**31)
    (root / "srv/data").chmod(0o6600)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    workshop.commit()


def whiteouts(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    for name in ("a/b/c", "a/b/d", "a/e", "f", "g/h"):
        put(root / name, name)
    workshop.commit()
    (root / "a/b/c").unlink()
    (root / "f").unlink()
    run("rm", "-r", str(root / "g"))
    workshop.commit()
    put(root / "g", "a file now")
    workshop.commit()


def folders_become_links_and_back(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    put(root / "opt/app/file", "1")
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "run").mkdir()
    workshop.commit()
    run("rm", "-r", str(root / "opt/app"))
    (root / "opt/app").symlink_to("../srv")
    put(root / "srv/file", "2")
    workshop.commit()
    (root / "opt/app").unlink()
    put(root / "opt/app/file", "3")
    (root / "var/run").unlink()
    put(root / "var/run/file", "4")
    workshop.commit()


def hard_links(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    put(root / "bin/busybox", os.urandom(100_000), 0o755)
    for name in ("ls", "sh", "cat"):
        os.link(root / "bin/busybox", root / "bin" / name)
    (root / "link").symlink_to("nowhere")
    os.link(root / "link", root / "link2", follow_symlinks=False)
    workshop.commit()


def hard_links_across_layers(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    put(root / "lib/one", "one")
    workshop.commit()
    staged = workshop.scratch("staged")
    put(staged / "lib/one", "one")
    (staged / "bin").mkdir()
    os.link(staged / "lib/one", staged / "bin/two")
    archive = workshop.folder / "layer.tar"
    run("tar", "-C", str(staged), "-cf", str(archive), "lib/one", "bin/two")
    run("tar", "--delete", "-f", str(archive), "lib/one")  # what is left is a link to a file of the layer below
    workshop.add(archive)


def devices_and_pipes(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    (root / "dev").mkdir()
    os.mknod(root / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "dev/vda", stat.S_IFBLK | 0o660, os.makedev(254, 0))
    os.mkfifo(root / "dev/initctl", 0o600)
    workshop.commit()


def capabilities_and_attributes(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    run("setcap", "cap_net_raw+ep", str(put(root / "bin/ping", "x", 0o755)))
    os.setxattr(put(root / "file"), "user.note", bytes(range(256)))
    (root / "folder").mkdir()
    os.setxattr(root / "folder", "user.note", b"folder")
    workshop.commit()
    os.removexattr(root / "folder", "user.note")
    workshop.commit()


def long_and_odd_names(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    put(root / ("n" * 250) / ("m" * 250), "long")
    put(root / "/".join(["deep"] * 60) / "file", "deep")
    put(root / "données/файл/文件/🙂", "unicode")
    put(root / " space \n newline \\ \"quote'", "odd")
    (root / "link").symlink_to("/" + "target/" * 50)
    workshop.commit()


def times(workshop: Workshop) -> None:
    workshop.begin()
    root = workshop.rootfs
    for moment_ns in (0, 1, 1_700_000_000_123_456_789, 5_000_000_000_000_000_000):
        path = put(root / f"folder/{moment_ns}")
        os.utime(path, ns=(moment_ns, moment_ns))
    os.utime(root / "folder", ns=(10**18 + 1, 10**18 + 1))
    (root / "link").symlink_to("x")
    os.utime(root / "link", ns=(10**18 + 5, 10**18 + 5), follow_symlinks=False)
    workshop.commit()
    put(root / "folder/later")
    os.utime(root / "folder", ns=(10**18 + 7, 10**18 + 7))
    workshop.commit()


def a_hundred_layers(workshop: Workshop) -> None:
    workshop.begin()
    for number in range(100):
        staged = workshop.scratch(f"layer{number}")
        put(staged / "counter", str(number))
        put(staged / f"files/{number}", "x")
        if number % 10 == 9:
            put(staged / f"files/.wh.{number - 5}")
        workshop.tar(staged, ".")


def opaque_folders(workshop: Workshop) -> None:
    workshop.begin()
    for name in ("etc/old", "etc/sub/old", "etc/sub/older/x", "srv/old"):
        put(workshop.rootfs / name, name)
    workshop.commit()
    staged = workshop.scratch("staged")
    for name in ("etc/new", "etc/.wh..wh..opq", "etc/sub/new", "srv/.wh..wh..opq", "srv/new"):
        put(staged / name, "" if ".wh." in name else name)
    # a file before the opaque mark, and after it: it hides neither
    workshop.tar(staged, "etc/new", "etc/.wh..wh..opq", "etc/sub/new", "srv/.wh..wh..opq", "srv/new")


def a_whiteout_beside_its_file(workshop: Workshop) -> None:
    workshop.begin()
    for name in ("one/x", "two/x"):
        put(workshop.rootfs / name, "old")
    workshop.commit()
    staged = workshop.scratch("staged")
    for name in ("one/y", ".wh.one", "two/y", ".wh.two"):
        put(staged / name, "new")
    workshop.tar(staged, ".wh.one", "one/y", "two/y", ".wh.two")


def sparse_in_gnu_format(workshop: Workshop) -> None:
    _sparse(workshop, "--format=gnu")


def sparse_in_posix_format(workshop: Workshop) -> None:
    _sparse(workshop, "--format=posix", "--sparse-version=1.0")


def sparse_in_the_older_posix_format(workshop: Workshop) -> None:
    _sparse(workshop, "--format=posix", "--sparse-version=0.1")


def _sparse(workshop: Workshop, *words: str) -> None:
    workshop.begin()
    staged = workshop.scratch("staged")
    with (staged / "holes").open("wb") as out:
        for number in range(30):
            out.seek(number * 300_000)
            out.write(b"x" * 5000)
        out.truncate(20_000_000)
    put(staged / "empty")
    with (staged / "nothing").open("wb") as out:
        out.truncate(1_000_000)
    workshop.tar(staged, "--sparse", *words, ".")


def below_a_link(workshop: Workshop) -> None:
    workshop.begin()
    put(workshop.rootfs / "usr/lib/old", "old")
    (workshop.rootfs / "lib").symlink_to("usr/lib")
    (workshop.rootfs / "abs").symlink_to("/usr/lib")
    workshop.commit()
    staged = workshop.scratch("staged")
    for name in ("lib/new", "abs/newer/file"):
        put(staged / name, name)
    workshop.tar(staged, "lib/new", "abs/newer/file")


def absolute_names(workshop: Workshop) -> None:
    workshop.begin()
    staged = workshop.scratch("staged")
    put(staged / "ko-app/app", "x", 0o755)
    workshop.tar(staged, "--transform=s,^,/,", "-P", "ko-app")


def the_oldest_format(workshop: Workshop) -> None:
    workshop.begin()
    staged = workshop.scratch("staged")
    put(staged / "bin/app", "x", 0o755)
    (staged / "bin/link").symlink_to("app")
    workshop.tar(staged, "--format=v7", "bin")


def of_buildah(workshop: Workshop) -> None:
    _buildah(workshop, "--format", "oci")


def of_buildah_squashed(workshop: Workshop) -> None:
    _buildah(workshop, "--format", "oci", "--squash")


def _buildah(workshop: Workshop, *words: str) -> None:
    storage = ("--storage-driver", "vfs", "--root", f"{workshop.folder}/store", "--runroot", f"{workshop.folder}/run")
    staged = workshop.scratch("staged")
    put(staged / "usr/bin/app", "x", 0o755)
    put(staged / "etc/conf", "old")
    put(staged / "etc/gone", "gone")
    base = run("buildah", *storage, "from", "scratch").strip()
    run("buildah", *storage, "copy", base, str(staged), "/")
    run("buildah", *storage, "commit", "--format", "oci", base, "base")
    second = run("buildah", *storage, "from", "localhost/base").strip()
    mounted = Path(run("buildah", *storage, "mount", second).strip())
    (mounted / "etc/gone").unlink()
    (mounted / "etc/conf").write_text("new")
    run("buildah", *storage, "config", "--entrypoint", '["/usr/bin/app"]', "--user", "7:8", second)
    run("buildah", *storage, "commit", *words, second, f"oci:{workshop.layout}:it")


# not sparse_in_gnu_format, of which umoci says "unknown typeflag"
IMAGES: tuple[Callable[[Workshop], None], ...] = (
    *(a_program, modes_and_owners, whiteouts, folders_become_links_and_back, hard_links, hard_links_across_layers),
    *(devices_and_pipes, capabilities_and_attributes, long_and_odd_names, times, a_hundred_layers, opaque_folders),
    *(a_whiteout_beside_its_file, sparse_in_posix_format, sparse_in_the_older_posix_format),
    *(below_a_link, absolute_names, the_oldest_format, of_buildah, of_buildah_squashed),
)


def listing(root: Path) -> dict[str, dict[str, Any]]:
    """All that is to be said of a tree, by path; files that are one are told by their first path."""
    first: dict[int, str] = {}
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for raw in sorted((*folders, *files, *([b"."] if folder == os.fsencode(root) else []))):
            path = folder + b"/" + raw
            name, seen = os.fsdecode(os.path.relpath(path, os.fsencode(root))), os.lstat(path)
            mode = seen.st_mode
            found[name] = {
                "mode": oct(mode),
                "owner": (seen.st_uid, seen.st_gid),
                "time": seen.st_mtime_ns,
                "device": seen.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
                "content": hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
                if stat.S_ISREG(mode)
                else "",
                "target": os.readlink(path) if stat.S_ISLNK(mode) else b"",  # noqa: PTH115 - names that are no text
                "attributes": {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in os.listxattr(path, follow_symlinks=False)
                },
                "links": seen.st_nlink if not stat.S_ISDIR(mode) else 0,
            }
            first.setdefault(seen.st_ino, name)
    return found

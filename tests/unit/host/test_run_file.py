"""What an image says that runs in it, in the words of the init: defaults, USER, and signals."""

from __future__ import annotations

from pathlib import Path

import pytest

from mikrom_reconcile.host.oci.manifests import Process
from mikrom_reconcile.host.oci.rootdisk import run_file
from mikrom_reconcile.host.oci.tree import Tree
from mikrom_reconcile.system.download import FetchError

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/srv/app:/bin/sh\nbroken:x:y\nfar:x:2:3:::\n"
GROUP = "root:x:0:\napp:x:1001:\nmore:x:44:root,app\nodd:x:z:app\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


def lines(root: Path, process: Process) -> list[str]:
    with Tree(root) as tree:
        return run_file(process, tree).decode().split("\0")[:-1]


def said(root: Path, user: str) -> list[str]:
    return [line for line in lines(root, Process(cmd=("x",), user=user)) if line.startswith(("uid", "gid", "group"))]


def test_a_command_follows_the_entrypoint_and_defaults_the_rest(root: Path) -> None:
    assert lines(
        root, Process(entrypoint=("/bin/a", ""), cmd=("b c",), env=("X=1=2", "HOME=/h"), working_dir="/w")
    ) == [
        *("arg=/bin/a", "arg=", "arg=b c", "env=X=1=2", "env=HOME=/h"),
        "env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        *("dir=/w", "uid=0", "gid=0", "group=44", "stop=15"),
    ]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", ["uid=0", "gid=0", "group=44"]),
        ("app", ["uid=1000", "gid=1001", "group=44"]),
        ("1000", ["uid=1000", "gid=1001", "group=44"]),
        ("4242", ["uid=4242", "gid=0"]),
        ("app:root", ["uid=1000", "gid=0"]),
        ("app:77", ["uid=1000", "gid=77"]),
        ("4242:more", ["uid=4242", "gid=44"]),
    ],
)
def test_a_user_is_looked_up_as_docker_does(user: str, expected: list[str], root: Path) -> None:
    assert said(root, user) == expected


@pytest.mark.parametrize("user", ["nobody", "broken", "app:nobody", "-1", "4294967295", "99999999999"])
def test_a_user_that_is_not_there_is_refused(user: str, root: Path) -> None:
    with pytest.raises(FetchError, match="its USER is"):
        said(root, user)


def test_accounts_are_never_those_of_this_host(root: Path, tmp_path: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("/etc/shadow")
    assert said(root, "") == ["uid=0", "gid=0"]
    (root / "etc/shadow").symlink_to("../usr/accounts")
    (root / "usr").mkdir()
    (root / "usr/accounts").write_text("root:x:0:9::/:\n")
    assert said(root, "") == ["uid=0", "gid=9", "group=44"]
    (root / "etc/shadow").unlink()
    (root / "etc/shadow").symlink_to("passwd")
    assert said(root, "") == ["uid=0", "gid=0"]


@pytest.mark.parametrize(
    ("name", "number"), [("SIGQUIT", 3), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGWINCH", 28)]
)
def test_a_stop_signal_is_a_name_or_a_number(name: str, number: int, root: Path) -> None:
    assert f"stop={number}" in lines(root, Process(cmd=("x",), stop_signal=name))


@pytest.mark.parametrize("words", [("x" * (1 << 20),), ("x",) * 5000])
def test_more_than_the_init_has_room_for_is_refused(words: tuple[str, ...], root: Path) -> None:
    with pytest.raises(FetchError, match="longer than a kernel takes"):
        lines(root, Process(cmd=words))


@pytest.mark.parametrize("name", ["SIGNOTHING", "0", "99", "SIG", "RTMIN+99", "SIG_DFL", "-1"])
def test_what_is_no_signal_is_refused(name: str, root: Path) -> None:
    with pytest.raises(FetchError, match="is no signal"):
        lines(root, Process(cmd=("x",), stop_signal=name))

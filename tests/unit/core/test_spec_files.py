"""Which files are read, refused or looked at, by their paths."""

from __future__ import annotations

import pytest

from mikrom_reconcile.core.parsing.documents import looks_like_a_spec, sorted_out, variables_of


def test_every_file_is_read_refused_looked_at_or_left_alone_for_a_reason() -> None:
    beside = ["web.yml", "a/web.YAML", "group_vars/kvm", "group_vars/kvm.d/10.yml", "host_vars/a.example.com"]
    others = ["web.yml.bak", "#web.yml#", "a/web.yml.bak", "README.md", "group_vars/README.md", "group_vars/kvm~"]
    nested = ["group_vars/kvm.d/20.conf", "group_vars/kvm.d/30", "group_vars/kvm.d/10.yml.bak", "group_vars/all.json"]
    assert dict(sorted_out(beside + others + nested)) == {
        **dict.fromkeys((*beside, "group_vars/kvm.d/30", "group_vars/all.json"), "read"),
        "group_vars/kvm.d/20.conf": "refuse",
        "a/web.yml.bak": "look",
        "README.md": "look",
    }


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("specs/web.yml", ("", "", "")),
        ("group_vars", ("", "", "")),
        ("specs/group_vars/kvm.yml", ("GroupVars", "kvm", "")),
        ("group_vars/old/host_vars/a.example.com", ("HostVars", "a.example.com", "")),
        ("group_vars/kvm.yml/10.yml", ("GroupVars", "kvm.yml", "10.yml")),
    ],
)
def test_the_path_of_a_file_of_variables_says_whose_they_are(path: str, found: tuple[str, str, str]) -> None:
    assert variables_of(path) == found


@pytest.mark.parametrize(
    ("head", "looks"),
    [
        (b"apiVersion: mikrom/v1\n", True),
        (b"\xef\xbb\xbf# web\r\n\r\n--- # first\r\nkind: Fleet\napiVersion: mikrom/v1\n", True),
        (b'{\n  "apiVersion": "mikrom/v1"}', True),
        (b"# Title\n\nkind words\n\n    apiVersion: mikrom/v1\n", False),
        (b"apiVersion: apps/v1\n", False),
        (b'{"format_version": "1:ab", "text": "apiVersion: mikrom/v1"}', False),
        (b"", False),
    ],
)
def test_a_spec_is_known_by_how_it_begins(head: bytes, looks: bool) -> None:  # noqa: FBT001
    assert looks_like_a_spec(head) is looks

"""Names of container images, as other tools take them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from mikrom_reconcile.core.model.desired import Boot, PinnedFile, RootDisk, VMSpec
from mikrom_reconcile.core.specs.images import init_words, is_container_image, is_loopback, repository_of, tag_of


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("nginx", "https://registry-1.docker.io/v2/library/nginx"),
        ("nginx:1.27", "https://registry-1.docker.io/v2/library/nginx"),
        ("docker.io/grafana/grafana:11.1", "https://registry-1.docker.io/v2/grafana/grafana"),
        ("team/app", "https://registry-1.docker.io/v2/team/app"),
        ("ghcr.io/team/app", "https://ghcr.io/v2/team/app"),
        ("localhost/app", "http://localhost/v2/app"),
        ("127.0.0.1:5000/team/app", "http://127.0.0.1:5000/v2/team/app"),
        ("[::1]:5000/app", "http://[::1]:5000/v2/app"),
        ("registry.example:5000/app", "https://registry.example:5000/v2/app"),
    ],
)
def test_a_name_leads_where_other_tools_take_it(text: str, url: str) -> None:
    assert repository_of(text).url == url


@pytest.mark.parametrize(
    "text", ["", "/", "UPPER/case", "docker.io/../x", "host.example:999999/x", "a b/c", "registry.example/", "x.y/a//b"]
)
def test_what_is_no_image_of_a_registry_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no image of a registry"):
        repository_of(text)


def test_only_this_host_is_loopback() -> None:
    assert [
        is_loopback(host) for host in ("localhost", "127.0.0.1:80", "[::1]", "127.evil.example", "localhost.x")
    ] == [
        *(True, True, True),
        *(False, False),
    ]


def test_a_mirror_is_asked_in_the_place_of_a_registry() -> None:
    mirrors = {"docker.io": "mirror.example:5000/hub", "ghcr.io": "mirror.example"}
    asked = {image: repository_of(image, mirrors).url for image in ("nginx:1", "ghcr.io/team/app", "quay.io/app")}
    assert asked == {
        "nginx:1": "https://mirror.example:5000/v2/hub/library/nginx",
        "ghcr.io/team/app": "https://mirror.example/v2/team/app",
        "quay.io/app": "https://quay.io/v2/app",
    }


def test_a_tag_stands_behind_the_name_and_in_front_of_a_digest() -> None:
    images = ("nginx", "nginx:1.2", "localhost:5000/a", f"localhost:5000/a:v1@sha256:{'0' * 64}")
    assert [tag_of(image) for image in images] == ["", "1.2", "", "v1"]


def test_three_kinds_of_sources_are_container_images() -> None:
    assert is_container_image("oci:nginx")
    assert is_container_image("oci-layout:file:///images/layout")
    assert is_container_image("docker-archive:file:///images/saved.tar")
    assert not is_container_image("file:///images/disk")


KERNEL = PinnedFile(source="file:///k", sha256="0" * 64)


def vm(source: str = "oci:nginx", **fields: Any) -> VMSpec:
    init = fields.pop("init", "mikrom")
    spec = msgspec.convert({"image": "web", **fields}, VMSpec)
    rootfs = RootDisk(source=source, sha256="0" * 64, init=init)
    return replace(spec, boot=Boot(kernel=KERNEL, rootfs=rootfs if source else None))


def test_the_init_is_named_to_kernels_of_container_images_unless_they_bring_their_own() -> None:
    assert [*init_words(vm(boot_args="quiet"))] == ["init=/.mikrom/init"]
    others = (vm(boot_args="quiet init=/sbin/init"), vm(""), vm("file:///r"), VMSpec(image="hello"))
    assert not any([*init_words(spec)] for spec in others)


def test_the_init_is_told_what_to_run_with_what_where_and_of_secrets_their_names_alone() -> None:
    spec = vm(
        command=["sh", "-c", 'echo "ü" 100%\n', "", 7],
        env={"B": "x=y z", "A": 1, "PASSWORD": {"secret_ref": "env://X"}},
        drives={
            "wal": {"size_mib": 1, "mount": "/data/wal"},
            "data": {"size_mib": 1, "mount": "/data"},
            "raw": {"size_mib": 1},
        },
    )
    assert [*init_words(spec)] == [
        "init=/.mikrom/init",
        *(
            "mikrom.arg=sh",
            "mikrom.arg=-c",
            "mikrom.arg=echo%20%22%C3%BC%22%20100%25%0A",
            "mikrom.arg=",
            "mikrom.arg=7",
        ),
        *("mikrom.env=A=1", "mikrom.env=B=x=y%20z", "mikrom.secret=PASSWORD"),
        *("mikrom.mount=/dev/vdb:/data", "mikrom.mount=/dev/vdd:/data/wal"),
    ]
    assert [*init_words(vm(init="image"))] == ["init=/.mikrom/init", "mikrom.init=/sbin/init"]

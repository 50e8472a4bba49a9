"""Names of container images, as other tools take them."""

from __future__ import annotations

import pytest

from mikrom_reconcile.core.model.desired import Boot, PinnedFile, RootDisk
from mikrom_reconcile.core.specs.images import init_argument, is_container_image, is_loopback, repository_of


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


def test_three_kinds_of_sources_are_container_images() -> None:
    assert is_container_image("oci:nginx")
    assert is_container_image("oci-layout:file:///images/layout")
    assert is_container_image("docker-archive:file:///images/saved.tar")
    assert not is_container_image("file:///images/disk")


def test_the_init_is_named_to_kernels_of_container_images_unless_they_bring_their_own() -> None:
    kernel = PinnedFile(source="file:///k", sha256="0" * 64)
    plain, container = (
        Boot(kernel=kernel, rootfs=RootDisk(source=source, sha256="0" * 64)) for source in ("file:///r", "oci:nginx")
    )
    assert init_argument(container, "quiet") == "init=/.mikrom/init"
    assert not init_argument(container, "quiet init=/sbin/init")
    assert not any(init_argument(boot, "") for boot in (None, Boot(kernel=kernel), plain))

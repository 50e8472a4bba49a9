"""A slice of `make nested`: a real Linux under a real Firecracker, where KVM is of the ordinary kind."""

from __future__ import annotations

import pytest

from tests import nested_host

REASON = nested_host.why_not()
GUEST = "tests/e2e/test_linux_guest.py::test_a_linux_guest_hears_of_new_metadata_while_it_serves_its_page"


@pytest.mark.first
@pytest.mark.timeout(1200)
@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_firecracker_boots_a_linux_that_serves_a_page_has_a_drive_and_hears_of_a_live_change() -> None:
    without = ("cacheprovider", "hypothesispytest", "pytest_cov", "randomly", "xdist")  # they take long to import
    words = ("-v", "--timeout", "900", *(word for plugin in without for word in ("-p", f"no:{plugin}")))
    assert nested_host.run(("pytest", *words, GUEST), mem_mib=2048, cpus=1, limit_s=900) == 0

"""`.env.example` lists every setting, with its default, and no other."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from mikrom_reconcile.settings import Settings, load

ROOT = Path(__file__).parents[2]
LINES = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
COMPOSE = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
LISTED = {match[1]: match[2] for line in LINES if (match := re.match(r"#(\w+)=(.*)$", line))}
EXAMPLES = {
    "MIKROM_STATE_DIR", "MIKROM_RUN_DIR", "MIKROM_FIRECRACKER", "MIKROM_JAILER", "MIKROM_BROKER_URL", "MIKROM_METRICS",
    "MIKROM_SPECS", "FLOWER_BASIC_AUTH", "REDIS_PASSWORD", "MIKROM_SIGNING_KEY", "MIKROM_VERIFY_KEY",
    "MIKROM_REGISTRY_AUTH", "MIKROM_REGISTRY_MIRRORS", "MIKROM_PAGE_AUTH",
    "MIKROM_GIT_ALLOWED_SIGNERS", "MIKROM_GIT_GNUPGHOME", "MIKROM_POLICY",
}  # fmt: skip
"""Settings whose default depends on the machine, or is that there is none."""


def test_every_setting_is_listed_once_and_nothing_that_nobody_reads() -> None:
    names = [match[1] for line in LINES if (match := re.match(r"#?(\w+)=", line))]
    ours = {entry.metadata["variable"] for entry in fields(Settings)}
    assert sorted(names) == sorted(ours | set(re.findall(r"\$\{(\w+)", COMPOSE)))


def test_nothing_is_set_by_copying_it() -> None:
    assert all(not line or line.startswith("#") for line in LINES)


def test_what_is_listed_is_the_default() -> None:
    changed = load({name: value for name, value in LISTED.items() if name not in EXAMPLES})
    assert changed == load({})


def test_what_is_listed_as_an_example_is_accepted() -> None:
    load({name: LISTED[name] for name in EXAMPLES})

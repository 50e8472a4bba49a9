"""What the documents point at is there: links, files, types, and the messages that they quote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mikrom_reconcile"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))
ONE_STRING_EACH = re.sub(r'"\s*f?"', "", SOURCES)
"""The sources with texts that stand over several lines joined."""

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose_of(document: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings_of(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@documents
def test_every_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose_of(document))
    for link in links:
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} does not exist"
        assert not anchor or anchor in headings_of(target), f"{link}: no such heading"


@documents
def test_every_module_that_is_named_exists(document: Path) -> None:
    for name in re.findall(r"`([\w./-]+\.py)`", prose_of(document)):
        assert (ROOT / name).is_file() or (PACKAGE / name).is_file(), f"there is no {name}"


@documents
def test_every_test_that_is_named_exists(document: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", prose_of(document)):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {name}"
    for folder in re.findall(r"`(tests/[\w/]+/)`", prose_of(document)):
        assert (ROOT / folder).is_dir(), f"there is no {folder}"


@documents
def test_every_type_and_constant_that_is_named_exists(document: Path) -> None:
    names = set(re.findall(r"`([A-Z]\w*[a-z]\w*|[A-Z]+(?:_[A-Z]+)+)`", prose_of(document)))
    elsewhere = {"Fleet", "Image", "Inventory", "KillMode", "Network", "Project", "SystemCallFilter"}
    for name in sorted(names - elsewhere):
        assert re.search(rf"\b{name}\b", SOURCES), f"nothing is called {name}"


def quoted_messages() -> Iterator[str]:
    """The first columns of the tables that say what to do about a message."""
    for document, section in (
        ("troubleshooting.md", "What doctor says"),
        ("troubleshooting.md", "Some errors"),
        ("CELERY_TROUBLESHOOTING.md", "Messages"),
    ):
        text = (ROOT / "docs" / document).read_text(encoding="utf-8").partition(section)[2].partition("\n## ")[0]
        yield from re.findall(r"^(?:\||-) `([^`]+)`", text, re.MULTILINE)


@pytest.mark.parametrize("message", list(quoted_messages()))
def test_every_message_that_is_quoted_is_one(message: str) -> None:
    for part in (part.strip() for part in message.split("…")):
        assert part in ONE_STRING_EACH, f"nothing says {part!r}"

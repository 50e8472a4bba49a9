"""A plan as Markdown and HTML, and values in full: what is in them cannot get out, and nothing gets too long."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import pytest
import yaml
from hypothesis import example, given, settings, strategies as st
from msgspec.structs import replace

from mikrom_reconcile.core.model.plan import FieldChange, Peak, Plan
from mikrom_reconcile.output import formats
from mikrom_reconcile.output.formats import json_of, plan_markdown
from mikrom_reconcile.output.pages import policy
from mikrom_reconcile.output.plan import plan_document, rollout_of, value_diff
from mikrom_reconcile.output.text import PLAIN, Style
from mikrom_reconcile.times_and_sizes import OUTPUT
from tests.samples import MEMORY, change, plan, refusal

FULL = Style(full=True)
NOTES = FieldChange(path="notes", before="one\ntwo\nthree", after="one\n2\nthree", impact="record")
PLAN = plan(
    change("web-000", host="hv01"),
    change("web-001", host="hv02"),
    change("web-002", "restart", "spec changed", fields=(MEMORY, NOTES)),
    change("db-000", "blocked", "refused", fleet="db", wanted="delete"),
    unchanged={"hv01": 2},
    refusals=(refusal("db", "1 of 1 VMs would go"),),
    unreachable={"hv03": "gave no answer"},
    warnings=("look out",),
    peaks={"web": Peak(down=1, size=3)},
)
EVIL = "a<script>alert(1)</script>&\"' `b` [c](http://d) | e @team \x1b[2J\u202e\nf --> */"


def evil_plan() -> Plan:
    field = FieldChange(path=EVIL, before=EVIL, after={EVIL: "```\n~~~"}, impact="restart")
    changes = (
        change(EVIL, "restart", EVIL, fleet=EVIL, host=EVIL, fields=(field,)),
        change("b", "wait", EVIL, fleet=EVIL, wanted="restart"),
    )
    return plan(
        *changes, project=EVIL, revision=EVIL, refusals=(refusal(EVIL, EVIL, rule=EVIL),), unreachable={EVIL: EVIL},
        warnings=(EVIL,), peaks={EVIL: Peak(down=1, size=2)}, id=EVIL,
    )  # fmt: skip


# ---- text --------------------------------------------------------------------------------------------------------


def test_a_plan_says_where_and_how_many_at_once() -> None:
    text = formats.PLAN["text"](PLAN, PLAIN)
    assert "  web  at most 1 of 3 down at a time\n" in text
    steps = replace(PLAN, peaks={"web": Peak(down=4, size=10, pending=9, batch=2, batches=(1, 4, 4, 1))})
    assert "web  batch 2 of 4 (1, 2 x 4, 1 VMs)\n" in formats.PLAN["text"](steps, PLAIN)
    assert "    + create   web-[000-001] on hv[01-02]: does not exist\n" in text


def test_a_long_value_is_cut_unless_all_of_it_is_asked_for() -> None:
    long = FieldChange(path="boot_args", before="a" * 100, after="b" * 100, impact="restart")
    planned = plan(change("a", "restart", "spec changed", fields=(long,)))
    assert f'boot_args: "{"a" * 58}… → "{"b" * 58}… (restart)' in formats.PLAN["text"](planned, PLAIN)
    full = formats.PLAN["text"](planned, FULL)
    assert f'boot_args (restart)\n                 - "{"a" * 100}"\n                 + "{"b" * 100}"\n' in full


def test_a_value_of_many_lines_is_compared_line_by_line() -> None:
    assert list(value_diff(NOTES)) == ["  one", "- two", "+ 2", "  three"]
    assert list(value_diff(MEMORY)) == ["- 16", "+ 32"]
    appears = FieldChange(path="m", before=None, after={"a": 1}, impact="live")
    assert list(value_diff(appears)) == ["+ {", '+   "a": 1', "+ }"]
    lines = [str(number) for number in range(40)]
    far = FieldChange(path="m", before="\n".join(lines), after="\n".join(["x", *lines[1:-1], "y"]), impact="live")
    assert list(value_diff(far)) == [
        "- 0", "+ x", "  1", "  2", "  3", " …", "  36", "  37", "  38", "- 39", "+ y",
    ]  # fmt: skip


# ---- YAML --------------------------------------------------------------------------------------------------------


TEXT = st.text(st.characters(codec="utf-8"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
        lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    )
)
def test_yaml_means_the_same_as_json_and_cannot_drive_the_terminal(value: object) -> None:
    text = formats.DOCUMENT["yaml"]({"value": value})
    assert yaml.safe_load(text) == json.loads(json_of({"value": value}))
    assert all(" " <= char <= "~" or char == "\n" for char in text)


def test_a_plan_as_yaml_is_the_same_document() -> None:
    assert yaml.safe_load(formats.PLAN["yaml"](PLAN, PLAIN)) == json.loads(json_of(plan_document(PLAN)))
    assert list(plan_document(PLAN)["changes"][0]["reasons"]) == ["does not exist"]


# ---- Markdown ----------------------------------------------------------------------------------------------------


def test_markdown_tells_everything_with_what_needs_attention_first() -> None:
    text = formats.PLAN["markdown"](PLAN, PLAIN)
    assert text.startswith("### Plan for demo at 3f2a1c9d8e7b\n\n**Plan: 2 to create, 1 to restart")
    assert text.index("**Refused**\n\n- fleet db: 1 of 1 VMs would go \\[prune\\]\n") < text.index("#### db")
    assert "#### web\n\nat most 1 of 3 down at a time\n\n| Change | VMs | Host | Why |\n|:--|:--|:--|:--|\n" in text
    assert "| ! blocked (delete) | db-000 | localhost | refused |\n" in text
    assert "machine.mem\\_size\\_mib: 16 → 32 (restart)<br>" in text
    full = formats.PLAN["markdown"](PLAN, FULL)
    assert (
        "```diff\nweb-002\n@@ machine.mem_size_mib (restart) @@\n- 16\n+ 32\n@@ notes (record) @@\n  one\n- two\n"
        in full
    )


def test_nothing_in_markdown_is_a_link_a_mention_html_or_the_end_of_a_cell() -> None:
    for style in (PLAIN, FULL):
        text = formats.PLAN["markdown"](evil_plan(), style)
        prose = re.sub(r"(`{3,})diff\n.*?\n\1\n", "", text, flags=re.DOTALL)
        assert "<script" not in prose
        assert not re.search(r"(?<!\\)\[|@team|://|(?<!\\)`b", prose)
        assert not set(text) & {"\x1b", "\u202e"}
        rows = [line for line in prose.split("\n") if line.startswith("|")]
        assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert "\n````diff\n" in formats.PLAN["markdown"](evil_plan(), FULL)


def test_markdown_is_cut_where_github_would_refuse_it_and_says_how_much() -> None:
    changes = (change(f"vm-{number:04d}", "restart", f"reason {number} " + "x" * 90) for number in range(1000))
    text = formats.PLAN["markdown"](plan(*changes), PLAIN)
    assert 60_000 < len(text) <= OUTPUT.markdown_characters
    shown = text.count("| vm-")
    assert f"_Cut here to stay below 65,536 characters, {1000 - shown} changes not shown: `mikrom plan`" in text
    assert "1000 to restart" in text


@given(count=st.integers(0, 400), length=st.integers(0, 70_000), full=st.booleans())
@example(count=400, length=70_000, full=True)
@example(count=400, length=70, full=False)
@settings(max_examples=25)  # the largest cost most of the time
def test_markdown_is_never_too_long(count: int, length: int, full: bool) -> None:  # noqa: FBT001
    field = FieldChange(path="boot_args", before="|" * length, after=None, impact="restart")
    changes = (change(f"vm-{number}", "restart", f"{number}", fields=(field,)) for number in range(count))
    planned = plan(*changes, warnings=("w" * length, "v" * length))
    assert len(formats.PLAN["markdown"](planned, Style(full=full))) <= OUTPUT.markdown_characters


# ---- HTML --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would make of a page: every tag with its attributes, balanced, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("planned", [PLAN, evil_plan(), plan()])
def test_a_page_is_whole_and_needs_nothing_from_outside(planned: Plan) -> None:
    html = formats.PLAN["html"](planned, PLAIN)
    page = Page(html)
    assert page.open == []
    assert html.startswith("<!doctype html>\n<html lang=")
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "a", "iframe", "base", "form"})
    assert not {name for _, attributes in page.tags for name in attributes} & {"src", "href", "onclick", "style"}
    assert "url(" not in html
    assert "@import" not in html
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy()}) in page.tags
    (style,) = re.findall("<style>(.*)</style>", html, re.DOTALL)
    assert b64encode(sha256(style.encode()).digest()).decode() in policy()
    assert "prefers-color-scheme: dark" in html
    assert 'content="width=device-width' in html


def test_a_page_tells_what_the_text_tells() -> None:
    page = Page(formats.PLAN["html"](PLAN, PLAIN))
    for told in (
        "Plan for demo at 3f2a1c9d8e7b", "Plan: 2 to create, 1 to restart, 1 blocked; 2 unchanged", "look out",
        "fleet db: 1 of 1 VMs would go [prune]", "hv03: gave no answer", "at most 1 of 3 down at a time",
        "web-[000-001]", "on hv02", "- two+ 2",
    ):  # fmt: skip
        assert told in page.text
    assert "Nothing to change: 1 VM as specified." in Page(formats.PLAN["html"](plan(unchanged={"a": 1}), PLAIN)).text


def test_what_is_in_a_page_stays_text() -> None:
    page = Page(formats.PLAN["html"](evil_plan(), PLAIN))
    assert page.text.count("<script>alert(1)</script>") > 5
    assert not set(page.text) & {"\x1b", "\u202e"}


def test_a_long_page_begins_folded() -> None:
    few, many = (plan(*(change(f"v{n}", "stop", f"r{n}") for n in range(count))) for count in (3, 30))
    assert formats.PLAN["html"](few, PLAIN).count("<details open>") == 3
    assert formats.PLAN["html"](many, PLAIN).count("<details>") == 30


def test_where_a_rollout_stands() -> None:
    assert rollout_of(PLAN, "db") == ""
    assert rollout_of(replace(PLAN, peaks={"web": Peak(down=1, size=3, pending=2)}), "web") == "2 of 3 VMs to go"
    batches = Peak(down=1, size=3, pending=2, batch=2, batches=(1, 1, 1))
    assert rollout_of(replace(PLAN, peaks={"web": batches}), "web") == "batch 2 of 3, 2 of 3 VMs to go"
    halted = replace(PLAN, refusals=(refusal("web", "it failed", rule="halted"),))
    assert rollout_of(halted, "web") == "halted"


def test_a_plan_that_is_cut_keeps_what_is_deleted_before_what_is_made() -> None:
    made = [change(f"a-{n:04d}", "create", f"reason {n}", fleet=f"a{n:04d}") for n in range(3000)]
    gone = change("z-000", "delete", "not in the specs", fleet="zz")
    text = plan_markdown(plan(*made, gone), PLAIN)
    assert len(text) <= 65536
    assert "| - delete | z-000 |" in text.replace("\\", "")

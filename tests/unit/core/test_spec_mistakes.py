"""What people are told about each kind of mistake, word for word: place, message, hint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import pytest

from mikrom_reconcile.core.model.documents import SourceFile, SourceTree, SpecProblem
from mikrom_reconcile.core.model.errors import SourceError, SpecError
from mikrom_reconcile.core.placement.desired_state import render_all, validate_specs
from mikrom_reconcile.wiring import schemas

KINDS = "known are Fleet, Image, Inventory, Network, Project, Refactor"

FLEET = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec:\n  replicas: 3\n  template: {image: hello}\n"
INVENTORY = "apiVersion: mikrom/v1\nkind: Inventory\nmetadata: {name: all}\nspec: {hosts: {hv01: , hv02: }}\n"
GUESS = "is read as {} by some programs and as text by others"


def problems_in(**files: str) -> tuple[SpecProblem, ...]:
    tree = SourceTree(
        revision="r",
        files=tuple(SourceFile(path=name.replace("__", "/") + ".yml", text=text) for name, text in files.items()),
    )
    try:
        render_all(validate_specs(tree, schemas(), here="localhost"), here="localhost")
    except SpecError as error:
        return error.problems
    return ()


def told(text: str) -> list[str]:
    return [
        f"{item.line}:{item.column} {item.message}" + (f"; {item.hint}" if item.hint else "")
        for item in problems_in(web=text)
    ]


def with_vars(value: str) -> str:
    return FLEET + f"  vars: {{a: {value}}}\n"


@pytest.mark.parametrize(
    ("word", "guess"),
    [
        ("no", "a boolean"), ("Yes", "a boolean"), ("OFF", "a boolean"), ("on", "a boolean"),
        ("010", "a number"), ("08", "a number"), ("0o17", "a number"), ("0x1F", "a number"), ("0b11", "a number"),
        ("1_000", "a number"), ("12:30", "a number"), ("190:20:30.15", "a number"), ("1e3", "a number"),
        (".inf", "a number"), ("-.INF", "a number"), (".NaN", "a number"), ("1.", "a number"), ("-.5", "a number"),
        ("2026-11-22", "a date"), ("2026-11-22T10:00:00Z", "a date"), ("2026-1-2 10:00:00", "a date"),
    ],
)  # fmt: skip
def test_a_word_that_programs_read_differently_is_a_mistake(word: str, guess: str) -> None:
    also = ", true or false for a boolean" if guess == "a boolean" else ""
    assert told(with_vars(word)) == [f"7:13 '{word}' {GUESS.format(guess)}; write \"{word}\" for the text{also}"]
    assert told(with_vars(f'"{word}"')) == []


@pytest.mark.parametrize(
    "word", ["1", "-1", "+1", "0", "1.5", ".5", "1.5e+3", "true", "FALSE", "~", "null", "y", "N", "10.0.0.1", "10s",
             "=", "02:fc:00:00:00:01", "1.2.3", "0x", "x:y", "2026-11", "é", "😀"],
)  # fmt: skip
def test_a_word_that_all_programs_read_alike_is_fine(word: str) -> None:
    assert told(with_vars(word)) == []


NASTY = {
    "a duplicate key": (
        FLEET + "  replicas: 4\n",
        ["7:3 duplicate key 'replicas'; it stands already on line 5; remove one of the two"],
    ),
    "a key written in two ways": (
        FLEET + '  "replicas": 4\n',
        ["7:3 duplicate key 'replicas'; it stands already on line 5; remove one of the two"],
    ),
    "an unknown key": (FLEET + "  prun: {}\n", ["7:3 unknown key 'prun' in spec; did you mean prune?"]),
    "a misspelt key that is required": (
        FLEET.replace("metadata", "metdata"),
        ["3:1 unknown key 'metdata' in the document; did you mean metadata?"],
    ),
    "keys that are missing": (
        "kind: Fleet\nspec: {replicas: 1}\n",
        ["1:1 apiVersion and metadata are missing in the document; write apiVersion: mikrom/v1"],
    ),
    "an unknown kind": (FLEET.replace("Fleet", "Flet"), ["2:7 unknown kind 'Flet'; did you mean Fleet?"]),
    "a kind that is a list": ("kind: [a]\n", [f"1:7 kind cannot be a list; {KINDS}"]),
    "a kind that is empty": ("kind:\n", [f"1:6 kind cannot be null; {KINDS}"]),
    "another version": (
        FLEET.replace("/v1", "/v2"), ['1:13 apiVersion cannot be "mikrom/v2"; write mikrom/v1'],
    ),
    "a list for a document": (
        "- a\n", ["1:1 a document must be a mapping; begin with apiVersion, kind and metadata"],
    ),
    "a Python tag": (
        with_vars("!!python/object/apply:os.system ['true']"),
        ["7:13 the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; write the plain value"],
    ),
    "a tag of one's own": (with_vars("!vault x"), ["7:13 the tag '!vault' is not allowed; write the plain value"]),
    "Jinja": (
        FLEET.replace("hello", "{{ image }}"),
        ["6:21 a key must be a word, not a list or a mapping; write ${name} for a variable"],
    ),
    "an anchor in itself": (with_vars("&a [*a]"), ["7:17 *a stands inside &a itself"]),
    "an alias of nothing": (
        with_vars("*web"), ["7:13 there is no &web above; write text that begins with * in quotes"],
    ),
    "a merge of no mapping": (FLEET + "  <<: 3\n", ["7:7 '<<' merges mappings only; point it at a mapping"]),
    "a number beyond all": (
        FLEET.replace("3", "9" * 25), [f"5:13 '{'9' * 25}' is too large a number; write \"{'9' * 25}\" for the text"],
    ),
    "a number longer than a line": (
        FLEET.replace("3", "9" * 5000), [f"5:13 '{'9' * 59}…' is too large a number; write it in quotes for the text"],
    ),
    "a NUL": (FLEET + "  vars: {a: \0}\n", ["7:13 the character U+0000 is not allowed in YAML"]),
    "an escape sequence": (with_vars("'\x1b[31m'"), ["7:14 the character U+001B is not allowed in YAML"]),
    "a byte order mark inside": (with_vars("\ufeff1"), ["7:13 the character U+FEFF is not allowed in YAML"]),
    "half a surrogate": (
        with_vars('"\\ud800"'), ["7:16 not YAML: found invalid Unicode character escape code"],
    ),
    "a tab before a key": (FLEET + "\tvars: {}\n", ["7:1 not YAML: a tab cannot indent; use spaces"]),
    "a bracket that is left open": (FLEET + "  vars: {a: 1\n", ["7:9 not YAML: this is never closed"]),
    "a quote that is left open": (FLEET + "  vars: {a: 'x}\n", ["7:13 not YAML: this is never closed"]),
    "a quote that is left open before the next document": (
        FLEET + "  vars: {a: 'x}\n---\n" + FLEET.replace("web", "db").replace("replicas", "replica"),
        [
            "7:13 not YAML: this is never closed",
            "13:3 unknown key 'replica' in spec; did you mean replicas?",
        ],
    ),
    "a colon in a text": (
        FLEET + "  vars: a: b\n",
        [("7:10 not YAML: mapping values are not allowed in this context;"
         " write text with ': ' in it in quotes, or check the indentation")],
    ),
    "a document end without a beginning": (
        FLEET + "...\n" + FLEET,
        ["8:1 not YAML: did not find expected <document start>; begin the next document with ---"],
    ),
    "an unknown directive": ("%YAML 2.0\n---\n" + FLEET, ["1:1 not YAML: found incompatible YAML document"]),
    "a name in capitals": (
        FLEET.replace("web", "Web"),
        ['3:18 metadata.name cannot be "Web"; up to 48 of a-z, 0-9 and \'-\', a letter or digit at both ends'],
    ),
    "a name that ends a line": (
        FLEET.replace("web", '"web\\n"'),
        ['3:18 metadata.name cannot be "web\\n"; up to 48 of a-z, 0-9 and \'-\', a letter or digit at both ends'],
    ),
    "text for a number": (
        FLEET.replace("3", "'3'"),
        [('5:13 spec.replicas must be a whole number, not "3";'
         " How many VMs; lowering it removes those with the highest numbers.")],
    ),
    "a number with a point": (FLEET.replace("3", "3.0"), ["5:13 spec.replicas must be a whole number, not 3.0"]),
    "a share with a point": (
        FLEET + "  prune: {max: 2.0}\n", ["7:16 spec.prune.max must be a whole number, not 2.0"],
    ),
    "a number out of range": (FLEET.replace("3", "-1"), ["5:13 spec.replicas is -1; it must be from 0 to 1000000"]),
    "a tag twice": (
        FLEET.replace("{name: web}", "{name: web, tags: [a, b, a]}"),
        ['3:29 metadata.tags has "a" twice; remove one of the two'],
    ),
    "a bad name of a variable": (
        FLEET + "  vars: {a-b: 1}\n",
        ["7:10 spec.vars cannot have the key 'a-b'; letters, digits and '_', no digit first"],
    ),
    "an image that nobody knows": (FLEET.replace("hello", "helo"), ["6:21 unknown image 'helo'; did you mean hello?"]),
    "several mistakes in one document": (
        FLEET.replace("3", "x").replace("hello", "helo") + "  prun: {}\n  vars: {a: 010}\n",
        [
            ('5:13 spec.replicas must be a whole number, not "x";'
            " How many VMs; lowering it removes those with the highest numbers."),
            "7:3 unknown key 'prun' in spec; did you mean prune?",
            "8:13 '010' is read as a number by some programs and as text by others; write \"010\" for the text",
        ],
    ),
    "a second fleet of one name": (FLEET + "---\n" + FLEET, ["10:18 a second Fleet web; the first is web.yml:1"]),
    "a host that the inventory lacks": (
        INVENTORY + "---\n" + FLEET + "  hosts: hv03\n",
        ["12:10 'hv03' matches no host and no group; did you mean hv02?"],
    ),
    "Windows": (
        FLEET.replace("\n", "\r\n") + "  prun: {}\r\n", ["7:3 unknown key 'prun' in spec; did you mean prune?"],
    ),
    "an old Mac": (FLEET.replace("\n", "\r") + "  prun: {}\r", ["7:3 unknown key 'prun' in spec; did you mean prune?"]),
    "line breaks that editors do not show": (
        FLEET + "  vars: {a: 'x\x85y\u2028z', a: 1}\n",
        ["7:22 duplicate key 'a'; it stands already on line 7; remove one of the two"],
    ),
    "nothing wrong: anchors and merges": (
        FLEET + "  vars: {d: &d {x: 1}, e: {<<: *d, y: 2}, f: [*d, *d]}\n", [],
    ),
    "nothing wrong: a comment, an empty document, a marker": ("# web\n---\n---\n" + FLEET + "---\n", []),
    "nothing wrong: JSON": (
        ('{"apiVersion": "mikrom/v1", "kind": "Fleet", "metadata": {"name": "web"},'
        ' "spec": {"replicas": 1, "template": {"image": "hello"}}}\n'), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NASTY)
def test_a_mistake_is_told_in_these_words(what: str) -> None:
    text, expected = NASTY[what]
    assert told(text) == expected


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n---\n", "null\n"])
def test_files_without_a_document_are_an_error_and_no_order_to_delete(text: str) -> None:
    with pytest.raises(SourceError, match=r"no document in web\.yml: nothing to plan from"):
        problems_in(web=text)


def network(number: int) -> str:
    cidr = f"10.{number >> 8}.{number & 255}.0/24"
    return f"apiVersion: mikrom/v1\nkind: Network\nmetadata: {{name: n{number}}}\nspec: {{cidr: {cidr}}}\n"


def groups(children: Mapping[int, Iterable[int]]) -> str:
    """Groups with these children."""
    lines = (
        f"    g{n}: {{children: [{', '.join(f'g{child}' for child in among)}]}}\n" for n, among in children.items()
    )
    return INVENTORY.replace("spec: {hosts: {hv01: , hv02: }}", "spec:\n  hosts: {hv01: }\n  groups:\n") + "".join(
        lines
    )


HOSTILE: dict[str, Callable[[], str]] = {
    "a bomb of aliases": lambda: "a: &b0 [x]\n" + "".join(f"b{n}: &b{n + 1} [*b{n}, *b{n}]\n" for n in range(60)),
    "a bomb of merges": lambda: (
        "k: &k0 {a: 1}\n" + "".join(f"m{n}: &k{n + 1} {{<<: [*k{n}, *k{n}]}}\n" for n in range(60))
    ),
    "a chain of aliases": lambda: "a: &a0 [1]\n" + "".join(f"b{n}: &a{n + 1} [*a{n}]\n" for n in range(5000)),
    "brackets": lambda: "[" * 2_000_000,
    "closed brackets": lambda: "[" * 500_000 + "]" * 500_000,
    "dashes": lambda: "- " * 1_000_000,
    "keys in keys": lambda: "? " * 1_000_000,
    "indentation": lambda: "".join(" " * depth + "k:\n" for depth in range(4000)),
    "one long word": lambda: FLEET.replace("web", "x" * 9_000_000),
    "one long key": lambda: FLEET + "  " + "x" * 9_000_000 + ": 1\n",
    "one long number": lambda: FLEET.replace("3", "7" * 9_000_000),
    "one long line of values": lambda: FLEET + "  vars: {a: [" + "1," * 4_000_000 + "]}\n",
    "many unknown keys": lambda: FLEET + "".join(f"  unknown{n}: 1\n" for n in range(20_000)),
    "many duplicate keys": lambda: FLEET + "  replicas: 1\n" * 60_000,
    "many guesses": lambda: FLEET + "  vars: {a: [" + "no," * 60_000 + "]}\n",
    "many tags that are mappings": lambda: FLEET.replace(
        "{name: web}", "{name: web, tags: [" + "{a: 1}," * 20_000 + "]}"
    ),
    "many bad instances": lambda: (
        FLEET + "  instances:\n" + "".join(f"    a{n}: {{state: up}}\n" for n in range(10_000))
    ),
    "many documents": lambda: "--- {kind: Fleat}\n" * 90_000,
    "many empty documents": lambda: "---\n" * 2_000_000,
    "many documents with a tag": lambda: "--- !x {}\n" * 90_000,
    "one mistake in ten thousand documents": lambda: "---\n".join(
        [*(FLEET.replace("web", f"w{n}") for n in range(10_000)), "a: ["]
    ),
    "a mistake in each of ten thousand documents": lambda: "---\n".join(
        FLEET.replace("web", f"W{n}") for n in range(10_000)
    ),
    "quotes": lambda: "'" * 5_000_000,
    "hashes": lambda: "[" + "#" * 9_000_000,
    "a pattern with a million hosts": lambda: INVENTORY + "---\n" + FLEET + "  hosts: hv[01:99999999]\n",
    "many networks": lambda: "---\n".join(network(n) for n in (*range(5000), 0)),
    "one network many times": lambda: "---\n".join(
        network(n).partition("10.")[0] + "10.0.0.0/8}\n" for n in range(2000)
    ),
    "groups that all contain each other": lambda: groups({n: range(80) for n in range(80)}),
    "a chain of groups": lambda: groups({n: [n + 1] for n in range(1500)}),
    "a pattern that backtracks": lambda: INVENTORY + "---\n" + FLEET + "  hosts: " + "*a" * 40 + "\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_malice_is_answered_within_two_seconds(what: str) -> None:
    text = HOSTILE[what]()
    began_s = time.process_time()
    problems = problems_in(web=text)
    assert time.process_time() - began_s < 2
    assert 1 <= len(problems) <= 501
    assert all(len(item.message) + len(item.hint) + len(item.excerpt) < 1000 for item in problems)


def test_a_reference_to_a_broken_document_is_no_second_mistake() -> None:
    broken = INVENTORY.replace("{hv01: , hv02: }", "{hv01: {varz: {}}}")
    (problem,) = problems_in(a=broken, b=FLEET + "  hosts: hv01\n", group_vars__gen2="a: 1\n")
    assert (problem.path, problem.message) == ("a.yml", "unknown key 'varz' in spec.hosts.hv01")


def test_references_are_checked_although_another_document_is_broken() -> None:
    found = problems_in(a=INVENTORY, b=FLEET + "  prun: {}\n", c=FLEET.replace("web", "db") + "  hosts: hv1\n")
    assert [(item.path, item.line) for item in found] == [("b.yml", 7), ("c.yml", 7)]


def test_what_good_documents_want_is_tried_although_another_is_broken() -> None:
    found = problems_in(
        a=FLEET + "  prun: {}\n",
        b=FLEET.replace("web", "db").replace("{image: hello}", "{image: hello, boot_args: '${nothing}'}"),
    )
    assert [(item.path, item.message) for item in found] == [
        ("a.yml", "unknown key 'prun' in spec"),
        ("b.yml", "db-000: ${nothing} is not defined"),
    ]

from __future__ import annotations

import msgspec

from mikrom_reconcile.core.model.specs import SourceFile, SourceTree
from mikrom_reconcile.core.parsing.known_files import NO_CACHE, KnownFiles
from mikrom_reconcile.core.specs.load import gather
from mikrom_reconcile.wiring import schemas

FLEET = "apiVersion: mikrom/v1\nkind: Fleet\nmetadata: {name: web}\nspec: {replicas: 1, template: {image: hello}}\n"


class Kept(dict[str, bytes]):
    """A cache in memory."""

    def put(self, key: str, content: bytes) -> None:
        self[key] = content


def tree(*texts: str) -> SourceTree:
    files = tuple(SourceFile(path=f"{number}.yml", text=text) for number, text in enumerate(texts))
    return SourceTree(revision="r", files=files)


def digests_in(content: bytes) -> list[str]:
    return list(msgspec.msgpack.decode(content, type=dict[str, msgspec.Raw]))


def test_without_a_cache_nothing_is_known() -> None:
    gather(tree(FLEET), schemas(), None, NO_CACHE)
    assert KnownFiles(NO_CACHE, tree(FLEET), schemas()).documents(tree(FLEET).files[0]) is None


def test_known_documents_are_the_ones_that_were_read() -> None:
    cache = Kept()
    first = gather(tree(FLEET), schemas(), None, cache)
    assert gather(tree(FLEET), schemas(), None, cache) == first
    assert KnownFiles(cache, tree(FLEET), schemas()).documents(tree(FLEET).files[0]) is not None


def test_a_known_number_keeps_its_spelling() -> None:
    cache = Kept()
    spelled = tree(FLEET.replace("replicas", "vars: {v: 1.30}, replicas"))
    for _ in range(2):
        (fleet,) = gather(spelled, schemas(), None, cache).specs.fleets
        assert str(fleet.vars["v"]) == "1.30"
    assert KnownFiles(cache, spelled, schemas()).documents(spelled.files[0]) is not None


def test_a_changed_file_is_read_anew_and_the_others_are_known() -> None:
    cache = Kept()
    gather(tree(FLEET, FLEET.replace("web", "db")), schemas(), None, cache)
    changed = tree(FLEET.replace("replicas: 1", "replicas: 2"), FLEET.replace("web", "db"))
    assert KnownFiles(cache, changed, schemas()).documents(changed.files[0]) is None
    assert KnownFiles(cache, changed, schemas()).documents(changed.files[1]) is not None
    assert [fleet.replicas for fleet in gather(changed, schemas(), None, cache).specs.fleets] == [1, 2]


def test_a_file_with_a_mistake_is_never_known() -> None:
    cache = Kept()
    wrong = tree(FLEET, FLEET.replace("web", "db").replace("replicas", "replica"))
    for _ in range(2):
        assert len(gather(wrong, schemas(), None, cache).problems) == 1
    assert KnownFiles(cache, wrong, schemas()).documents(wrong.files[0]) is not None
    assert KnownFiles(cache, wrong, schemas()).documents(wrong.files[1]) is None


def test_another_schema_knows_nothing_of_what_passed_this_one() -> None:
    cache = Kept()
    gather(tree(FLEET), schemas(), None, cache)
    stricter = schemas() | {"Fleet": schemas()["Fleet"].replace('"maximum": 1000000', '"maximum": 0')}
    assert len(gather(tree(FLEET), stricter, None, cache).problems) == 1


def test_mistakes_between_documents_are_told_although_both_are_known() -> None:
    cache = Kept()
    for _ in range(2):
        assert [problem.message for problem in gather(tree(FLEET, FLEET), schemas(), None, cache).problems] == [
            "a second Fleet web; the first is 0.yml:1"
        ]


def test_content_of_another_shape_is_not_known() -> None:
    cache = Kept()
    gather(tree(FLEET), schemas(), None, cache)
    (key,) = cache
    for content in (
        b"\x93\x01\x02\x03",
        b"\xc1",
        msgspec.msgpack.encode({digest: [1] for digest in digests_in(cache[key])}),
    ):
        cache[key] = content
        assert gather(tree(FLEET), schemas(), None, cache).specs.documents == 1

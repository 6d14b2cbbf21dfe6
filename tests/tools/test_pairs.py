import random

import pytest
from tiny import corpus, pairs
from tiny.splits import split_of, split_of_id
from tiny.stdlib import Function
from tiny.wordnet import Synset


@pytest.fixture(autouse=True)
def _few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "NUM_PROBES_PER_LABEL", 8)


@pytest.fixture(scope="module")
def synsets() -> list[Synset]:
    """300 groups of six siblings, each with gloss and example."""
    made = []
    for group in range(300):
        key = f"n{group:05d}000"
        parts = ("noun", "verb", "adjective")
        made.append(Synset(key, parts[group % 3], (f"root {group}",), f"top {group}", (), None))
        for child in range(6):
            name = f"{group}-{child}"
            made.append(
                Synset(
                    f"n{group:05d}{child + 1:03d}",
                    parts[group % 3],
                    (f"word {name}", f"other {name}"),
                    f"the thing of number {name}",
                    (f"a sentence with {name}",),
                    key,
                )
            )
    return made


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    return [
        Function(
            f"module{module}",
            f"name{index}",
            f"Do the thing number {index} of {module}",
            f"def name{index}():\n    '''Do it.'''\n    return {module} * {index} + 1",
            f"def f():\n    return {module} * {index} + {module} + {index} + 1",
        )
        for module in range(150)
        for index in range(12)
    ]


def test_splits_share_no_text_and_follow_from_the_id(
    synsets: list[Synset], functions: list[Function]
) -> None:
    train, test, probes = pairs.assemble(synsets, functions)
    train_lines = [line for lines in train.values() for line in lines]
    assert train_lines
    assert {line["source"] for line in test} == {"definition", "example", "code"}
    assert len(probes) == 4 * pairs.NUM_PROBES_PER_LABEL
    for split, lines in (("train", train_lines), ("test", test), ("probe", probes)):
        assert {split_of_id(str(line["id"])) for line in lines} == {split}
    texts = [pairs.held_out_texts(lines) for lines in (train_lines, test, probes)]
    assert texts[0].isdisjoint(texts[1])
    assert texts[0].isdisjoint(texts[2])
    assert texts[1].isdisjoint(texts[2])


def test_negatives_are_siblings_and_differ_from_the_positive(synsets: list[Synset]) -> None:
    items = pairs.definition_items(synsets)
    group_of = {item.positive: item.group for item in items}
    for pair in pairs.draw_pairs(items, "train", 100):
        negatives, (positive,) = pair["neg"], pair["pos"]
        assert len(set(negatives)) == pairs.NUM_NEGATIVES
        assert positive not in negatives
        assert {group_of[text] for text in negatives} == {group_of[positive]}


def test_repeated_texts_are_dropped() -> None:
    def item(query: str, positive: str) -> pairs.Item:
        return pairs.Item("definition", "g", "n", query, positive)

    kept = pairs.unique_items(
        [item("first query", "a positive"), item("second query", "A Positive"), item("short", "x")]
    )
    assert [one.query for one in kept] == ["first query"]


def test_long_sources_are_cut_at_a_line_border() -> None:
    source = "def f():\n" + "    call_something()\n" * 40
    cut = pairs.shorten(source)
    assert len(cut) <= pairs.MAX_CHARS
    assert cut.endswith("call_something()")


def test_held_out_groups_and_repeated_texts_stay_out_of_the_pretraining_text(
    synsets: list[Synset], functions: list[Function]
) -> None:
    _, test, probes = pairs.assemble(synsets, functions)
    held_out = pairs.held_out_texts([*test, *probes])
    documents = "\n".join(
        corpus.text_documents(synsets, functions, held_out, random.Random(0))
    ).lower()
    trained = [s for s in synsets if split_of("wordnet", s.group) == "train" and s.parent]
    assert all(synset.gloss in documents for synset in trained[:50])
    glosses = {line["pos"][0] for line in test if line["source"] == "definition"}
    assert glosses
    for gloss in glosses:
        assert f"{gloss}." not in documents
        assert f"{gloss}:" not in documents
    for line in probes:
        if line["label"] == "code":
            assert f"# {line['id'].split('/')[1]}\n" not in documents

import json
import tracemalloc

import numpy as np

from hrsa_lightning.data import read_pairs
from hrsa_lightning.mine.texts import PairTexts, normalize_text


def _write(path, *pairs):
    keys = ("query", "pos", "neg")
    path.write_text("".join(json.dumps(dict(zip(keys, p, strict=True))) + "\n" for p in pairs))
    return path


def _texts(tmp_path):
    first = _write(
        tmp_path / "first.jsonl",
        (["do", "Q one"], ["a", "B"], ["c", "A "]),
        (["or", "q  ONE"], ["d"], []),
        ("q two", ["b"], ["q one"]),
    )
    second = _write(tmp_path / "second.jsonl", ("q two", ["a"], ["e", "d"]), ("x", ["e"], []))
    return PairTexts(read_pairs([first, second]))


def _own(texts, pair):
    everything = np.arange(texts.num_passages)
    hidden = everything[texts.are_answers(pair, everything)]
    return {text for text, _ in texts.read_passages(hidden)}


def test_numbers_follow_first_appearance(tmp_path):
    texts = _texts(tmp_path)
    assert len(texts) == 5
    assert texts.read_queries(0, 4) == [("do", "Q one"), ("or", "q  ONE"), "q two", "x"]
    assert texts.query.tolist() == [0, 1, 2, 2, 3]
    passages = [text for text, _ in texts.read_passages(range(6))]
    assert passages == ["a", "B", "c", "d", "q one", "e"]
    assert texts.num_passages == 6
    assert [texts.positives(n).tolist() for n in range(5)] == [[0, 1], [3], [1], [0], [5]]
    assert [texts.negatives(n).tolist() for n in range(5)] == [[2, 0], [], [4], [5, 3], []]


def test_answers_are_those_of_the_same_query_text(tmp_path):
    texts = _texts(tmp_path)
    assert _own(texts, 0) == _own(texts, 1) == {"a", "B", "d", "q one"}
    assert _own(texts, 2) == _own(texts, 3) == {"B", "a"}
    assert _own(texts, 4) == {"e"}


def test_digest_changes_with_every_text(tmp_path):
    def digest(*pairs):
        return PairTexts(read_pairs([_write(tmp_path / "p.jsonl", *pairs)])).digest

    base = (["do", "q"], ["a", "b"], ["c"])
    digests = [
        digest(base),
        digest((["do", "Q"], ["a", "b"], ["c"])),
        digest(("q", ["a", "b"], ["c"])),
        digest((["do", "q"], ["a"], ["b", "c"])),
        digest((["do", "q"], ["a", "b"], ["d"])),
        digest(base, base),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(base) == digests[0]


def test_letters_that_folding_takes_apart_are_equal_in_both_cases():
    lower = "\u0390\u01f0"
    upper = lower.upper()
    assert len(upper) > len(lower)
    assert normalize_text(upper) == normalize_text(lower) == normalize_text(normalize_text(lower))


def test_own_passages_are_all_of_the_documents_that_answer(tmp_path):
    path = tmp_path / "p.jsonl"
    records = [
        {"query": "x", "pos": ["a", "b"], "pos_ids": [1, 2], "neg": ["c", "d"], "neg_ids": [2, 3]},
        {"query": "X", "pos": ["e"], "neg": ["f"], "neg_ids": [1]},
        {"query": "y", "pos": ["f"], "pos_ids": [3]},
        {"query": "z", "pos": ["d"]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    texts = PairTexts(read_pairs([path]))
    assert _own(texts, 0) == _own(texts, 1) == {"a", "b", "c", "e", "f"}
    assert _own(texts, 2) == {"f", "d"}
    assert _own(texts, 3) == {"d"}
    assert texts.read_passages(range(6)) == [
        ("a", "1"), ("b", "2"), ("c", "2"), ("d", "3"), ("e", None), ("f", "1"),
    ]  # fmt: skip


def test_memory_is_a_hundred_bytes_a_passage_however_long_it_is(tmp_path):
    def peak(count):
        path = tmp_path / f"{count}.jsonl"
        words = "word " * 200
        _write(path, *((f"q {n}", [f"p {n} {words}"], [f"n {n} {words}"]) for n in range(count)))
        sources = read_pairs([path])
        tracemalloc.start()
        try:
            PairTexts(sources)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    bytes_of_a_passage = (peak(3500) - peak(500)) / 6000
    assert bytes_of_a_passage < 150

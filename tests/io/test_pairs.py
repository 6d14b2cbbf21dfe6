import pytest

from hrsa_lightning.errors import DataError
from hrsa_lightning.io.pairs import ContrastivePair, parse_pair


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"query": ["do", "q"], "pos": ["a", "b"], "neg": ["c"], "id": "x/1"},
            ContrastivePair(("do", "q"), ("a", "b"), ("c",), "x/1"),
        ),
        ({"query": "q", "pos": ["a"], "neg": []}, ContrastivePair("q", ("a",))),
        ({"query": "q", "pos": ["a"]}, ContrastivePair("q", ("a",))),
        ({"query": ["", "q"], "pos": "a", "neg": "b"}, ContrastivePair("q", ("a",), ("b",))),
        ({"query": [None, "q"], "pos": ["a"]}, ContrastivePair("q", ("a",))),
        ({"query": "q", "pos": ["a"], "neg": None}, ContrastivePair("q", ("a",))),
        ({"anchor": "q", "positive": "a"}, ContrastivePair("q", ("a",))),
        ({"query": "q", "positive": "a", "negative": "b"}, ContrastivePair("q", ("a",), ("b",))),
        (
            {"anchor": "q", "positive": "a", "negative": ["b", "c"]},
            ContrastivePair("q", ("a",), ("b", "c")),
        ),
        (  # numbers count as numbers, and gaps are how a table spells "fewer"
            {
                "negative_10": "n10",
                "anchor": "q",
                "negative_2": "n2",
                "positive": "a",
                "negative_3": None,
            },
            ContrastivePair("q", ("a",), ("n2", "n10")),
        ),
        (  # `negative` and `negative_0` are two columns
            {"anchor": "q", "positive": "a", "negative_0": "n0", "negative": "n"},
            ContrastivePair("q", ("a",), ("n", "n0")),
        ),
        (
            {"query": "q", "pos": ["a"], "id": 7, "other": object()},
            ContrastivePair("q", ("a",), id="7"),
        ),
    ],
)
def test_accepted_forms(record, expected):
    assert parse_pair(record) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["q", "a"], "expected an object with query and pos, got a list of 2"),
        ("q", "expected an object with query and pos, got str 'q'"),
        ({"pos": ["a"]}, "none is a column, found ['pos']\n  write columns: {query: NAME, pos"),
        ({"query": "q", "neg": ["a"]}, '"pos", "positive", "positive_passages", "answer"'),
        ({"query": "q", "pos": []}, '"pos" has no text'),
        ({"query": "q", "pos": None}, '"pos" has no text'),
        ({"query": "q", "pos": ["a", ""]}, '"pos[1]" is empty'),
        ({"query": "q", "pos": ["a"], "neg": ["b", " \t\n"]}, '"neg[1]" is empty'),
        ({"query": "q", "pos": ["a"], "neg": [["b"]]}, '"neg[0]" must be a text, got a list of 1'),
        ({"query": "q", "pos": [3]}, '"pos[0]" must be a text, got int 3'),
        ({"query": "q", "pos": 3}, '"pos" must be a text or a list of texts, got int 3'),
        ({"query": "", "pos": ["a"]}, '"query" is empty'),
        ({"query": ["do", ""], "pos": ["a"]}, '"query[1]" is empty'),
        ({"query": [5, "q"], "pos": ["a"]}, '"query[0]" must be a text, got int 5'),
        ({"query": ["q"], "pos": ["a"]}, "must be a text or [instruction, text], got a list of 1"),
        ({"query": None, "pos": ["a"]}, "must be a text or [instruction, text], got null"),
        ({"query": "q", "pos": ["\ud800"]}, '"pos[0]" has half of a surrogate pair'),
        ({"anchor": "q", "positive": "a", "negative_1": ""}, '"negative_1" is empty'),
        ({"query": "q", "pos": ["a"], "positive": "b"}, 'expected "pos" or "positive", got both'),
        (
            {"query": "q", "pos": ["a"], "pos_ids": ["\udc00"]},
            '"pos_ids" must be a text or a whole',
        ),
        ({"query": "q", "pos": ["a"], "id": {}}, '"id" must be a text or a whole number'),
    ],
)
def test_refused_forms(record, message):
    with pytest.raises(DataError) as caught:
        parse_pair(record)
    assert message in str(caught.value)


def test_documents_are_named_beside_the_texts():
    pair = parse_pair({"query": "q", "pos": ["a", "b"], "pos_ids": [7, "x"], "neg": ["c"]})
    assert (pair.positive_ids, pair.negative_ids) == (("7", "x"), ())
    for ids, message in (([1], '"pos_ids" has 1 ids for 2 texts'), ("ab", "must be a list of ids")):
        with pytest.raises(DataError, match=message):
            parse_pair({"query": "q", "pos": ["a", "b"], "pos_ids": ids})

from hrsa_lightning.data import ContrastivePair, RetrievalSet, read_retrieval_set
from tests.data.helpers import write_pairs


def test_equal_passages_and_equal_queries_are_one():
    pairs = [
        ContrastivePair(("do", "q"), ("a", "b"), ("c",)),
        ContrastivePair("q", ("c",), ("a", "d")),
        ContrastivePair(("do", "q"), ("e", "a"), ("b",)),  # b stays relevant
    ]
    task = RetrievalSet.from_pairs(iter(pairs))
    assert task.queries == (("do", "q"), "q")
    assert task.corpus == ("a", "b", "c", "d", "e")
    assert task.relevance == ((0, 1, 4), (2,))


def test_reading_pools_all_files(tmp_path):
    task = read_retrieval_set(write_pairs(tmp_path, {"a": 3, "b": 2}))
    assert len(task.queries) == 5
    assert len(task.corpus) == 5 * 6
    assert task.queries[3] == ("find it", "b query 0")
    assert [task.corpus[row] for row in task.relevance[3]] == ["b positive 0 0", "b positive 0 1"]

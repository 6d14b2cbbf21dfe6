import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsa_lightning.data import ContrastiveDataset, GlobalBatchSampler, read_pairs
from hrsa_lightning.errors import DataError, HRSAWarning
from tests.data.helpers import pair, write_lines, write_pairs


def batches(sizes, batch_size, *, epoch=0, first_batch=0, **options):
    sampler = GlobalBatchSampler(sizes, batch_size, **options)
    sampler.set_epoch(epoch)
    sampler.first_batch = first_batch
    return list(sampler)


def source_of(sizes, example):
    return int(np.searchsorted(np.cumsum(sizes), example, side="right"))


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_epoch(sizes, batch_size, seed, epoch, drop_last):
    if sum(sizes) < batch_size:
        return
    drawn = batches(sizes, batch_size, seed=seed, epoch=epoch, drop_last=drop_last)
    sampler = GlobalBatchSampler(sizes, batch_size, seed=seed, drop_last=drop_last)
    assert len(drawn) == len(sampler)
    assert all(len(batch) == batch_size for batch in drawn)
    assert {key[:2] for batch in drawn for key in batch} == {(seed, epoch)}
    examples = [[example for *_, example in batch] for batch in drawn]
    counts = Counter(example for batch in examples for example in batch)
    assert all(len(set(batch)) == batch_size for batch in examples)
    assert set(counts) <= set(range(sum(sizes)))
    if drop_last:
        assert set(counts.values()) == {1}
        assert sum(sizes) - len(counts) < batch_size
    else:
        assert len(counts) == sum(sizes)
        assert sum(counts.values()) - len(counts) < batch_size
    # Whole batches of one source come first; then what the sources have left over.
    whole = sum(size // batch_size for size in sizes)
    for batch in examples[:whole]:
        assert len({source_of(sizes, example) for example in batch}) == 1
    per_source = Counter(source_of(sizes, batch[0]) for batch in examples[:whole])
    assert all(per_source[number] == size // batch_size for number, size in enumerate(sizes))


SIZES, BATCH_SIZE = [37, 21, 50], 8


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_slices_of_ranks_make_up_the_batches_of_one_process(world_size, drop_last):
    alone = batches(SIZES, BATCH_SIZE, seed=3, epoch=2, drop_last=drop_last)
    ranks = [
        batches(
            SIZES,
            BATCH_SIZE,
            seed=3,
            epoch=2,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        for rank in range(world_size)
    ]
    joined = [list(itertools.chain(*slices)) for slices in zip(*ranks, strict=True)]
    assert joined == alone
    assert all(len(batch) == BATCH_SIZE // world_size for batch in ranks[-1])


def test_same_seed_and_epoch_same_order_and_else_another():
    order = batches(SIZES, BATCH_SIZE, seed=3, epoch=2)
    assert batches(SIZES, BATCH_SIZE, seed=3, epoch=2) == order
    others = [
        batches(SIZES, BATCH_SIZE, seed=seed, epoch=epoch) for seed, epoch in [(4, 2), (3, 1)]
    ]
    as_examples = [[[e for *_, e in batch] for batch in run] for run in (order, *others)]
    assert as_examples[0] != as_examples[1]
    assert as_examples[0] != as_examples[2]


def test_sources_take_turns():
    whole = batches([400, 400], 8, seed=0)
    sources = [source_of([400, 400], batch[0][2]) for batch in whole]
    changes = sum(a != b for a, b in itertools.pairwise(sources))
    assert 30 < changes < 70  # of 99; a fair coin changes 49.5 times


def test_starting_later_gives_the_remaining_batches():
    order = batches(SIZES, BATCH_SIZE, seed=1, epoch=5)
    assert batches(SIZES, BATCH_SIZE, seed=1, epoch=5, first_batch=4) == order[4:]
    assert batches(SIZES, BATCH_SIZE, seed=1, epoch=5, first_batch=len(order)) == []


def test_a_batch_must_split_evenly_and_be_filled():
    with pytest.raises(DataError, match="multiple of their number, 4, got 6"):
        GlobalBatchSampler([50], 6, world_size=4)
    with pytest.raises(DataError, match="positive multiple"):
        GlobalBatchSampler([50], 0)
    with pytest.raises(DataError, match="batch_size is 8, but there are only 7 examples"):
        GlobalBatchSampler([3, 4], 8, drop_last=False)


def make_dataset(folder, sizes, num_negatives=4, **options):
    return ContrastiveDataset(read_pairs(write_pairs(folder, sizes, num_negatives)), **options)


def test_group_is_a_positive_and_distinct_negatives(tmp_path):
    dataset = make_dataset(tmp_path, {"a": 3, "b": 2}, train_group_size=4)
    assert (len(dataset), dataset.sizes) == (5, [3, 2])
    for number in range(5):
        name, row = ("a", number) if number < 3 else ("b", number - 3)
        example = dataset[0, 7, number]
        assert example.query == ("find it", f"{name} query {row}")
        positive, *negatives = example.passages
        assert positive in pair(name, row)["pos"]
        assert len(set(negatives)) == 3
        assert set(negatives) <= set(pair(name, row)["neg"])


def test_too_few_negatives_are_all_used_before_any_is_repeated(tmp_path):
    dataset = make_dataset(tmp_path, {"a": 1}, num_negatives=3, train_group_size=9)
    counts = Counter(dataset[0, 0, 0].passages[1:])
    assert sorted(counts.values()) == [2, 3, 3]


def test_group_of_one_needs_no_negatives(tmp_path):
    dataset = make_dataset(tmp_path, {"a": 2}, num_negatives=0, train_group_size=1)
    assert len(dataset[0, 0, 1].passages) == 1


def test_draws_depend_on_seed_epoch_and_example_alone(tmp_path):
    sources = read_pairs(write_pairs(tmp_path, {"a": 30}))
    keys = [(1, epoch, example) for epoch in range(3) for example in range(30)]
    first = {key: ContrastiveDataset(sources)[key] for key in keys}
    shuffled = ContrastiveDataset(sources)
    random.Random(0).shuffle(keys)
    np.random.seed(0)
    random.seed(0)
    before = np.random.get_state()[1].tolist(), random.getstate()
    assert {key: shuffled[key] for key in keys} == first
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    assert any(first[1, 0, example] != first[1, 1, example] for example in range(30))
    assert any(first[1, 0, example] != shuffled[2, 0, example] for example in range(30))


def test_several_seeds_give_the_orders_of_each_side_by_side():
    options = {"epoch": 2, "first_batch": 1, "world_size": 2, "rank": 1}
    alone = [batches(SIZES, BATCH_SIZE, seed=seed, **options) for seed in (3, 4)]
    both = batches(SIZES, BATCH_SIZE, seed=[3, 4], **options)
    assert both == [first + second for first, second in zip(*alone, strict=True)]


def test_draws_are_uniform(tmp_path):
    dataset = make_dataset(tmp_path, {"a": 1}, train_group_size=3)
    drawn = [dataset[0, epoch, 0].passages for epoch in range(1000)]
    positives = Counter(passages[0] for passages in drawn)
    negatives = Counter(text for passages in drawn for text in passages[1:])
    # Expected 500 each; the standard deviation of each count is 16.
    assert len(positives) == 2
    assert len(negatives) == 4
    assert all(abs(count - 500) < 80 for count in (positives | negatives).values())


def mixed_sources(folder):
    full, bare = pair("full", 0), pair("bare", 0, num_negatives=0)
    return read_pairs(
        [
            write_lines(folder / "mixed.jsonl", [bare, full, bare, {**full, "query": "last"}]),
            write_lines(folder / "none.jsonl", [bare]),
            write_lines(folder / "fine.jsonl", [full]),
        ]
    )


def test_examples_without_negatives_are_refused_with_counts(tmp_path):
    sources = mixed_sources(tmp_path)
    with pytest.raises(DataError, match=r"none: 2 of 4 in .*mixed\.jsonl, 1 of 1 in .*none\.jsonl"):
        ContrastiveDataset(sources, train_group_size=2)
    assert len(ContrastiveDataset(sources, train_group_size=1)) == 6


def test_examples_without_negatives_can_be_dropped(tmp_path):
    mixed, none, last = mixed_sources(tmp_path)
    with pytest.warns(HRSAWarning, match=r"dropped .* 2 of 4 in .*mixed\.jsonl$"):
        dataset = ContrastiveDataset([mixed, last], train_group_size=2, missing_negatives="drop")
    assert dataset.sizes == [2, 1]
    assert [dataset[0, 0, number].query for number in range(3)] == [
        ("find it", "full query 0"),
        "last",
        ("find it", "full query 0"),
    ]
    with pytest.raises(DataError, match=r"none: 1 of 1 in .*none\.jsonl"):
        ContrastiveDataset([mixed, none], train_group_size=2, missing_negatives="drop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_group_size": 0}, "train_group_size must be at least 1, got 0"),
        ({"missing_negatives": "ignore"}, "missing_negatives must be"),
    ],
)
def test_arguments_are_checked(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        make_dataset(tmp_path, {"a": 1}, **options)


def _sources_of(batches, sizes):
    ends = np.cumsum(sizes)
    return [{int(np.searchsorted(ends, e, side="right")) for e in batch} for batch in batches]


def test_weights_decide_how_often_batches_of_a_source_come():
    sizes = [40, 9, 400]
    sampler = GlobalBatchSampler(sizes, batch_size=8, seed=1, weights=[1, 2, 1])
    batches = sampler.global_batches(1)
    assert batches.shape == (len(sampler), 8) == (449 // 8, 8)
    sources = _sources_of(batches, sizes)
    assert all(len(source) == 1 for source in sources)
    counts = [sources.count({number}) for number in range(3)]
    assert counts == [14, 28, 14]
    assert all(len(set(batch.tolist())) == 8 for batch in batches)
    # The small source comes round and round, differently each time; the large one is sampled from.
    small = [tuple(batch) for batch, source in zip(batches, sources, strict=True) if source == {1}]
    assert len(set(small)) > 20
    sampler.set_epoch(1)
    other = sampler.global_batches(1)
    large = [set(b[b >= 49].tolist()) for b in (batches, other)]
    assert len(large[0]) == len(large[1]) == 14 * 8
    assert large[0] != large[1]


def test_weighted_batches_are_the_same_on_any_number_of_ranks():
    options = {"batch_size": 8, "seed": 3, "weights": [0.25, 0.75]}
    whole = list(GlobalBatchSampler([30, 50], **options))
    parts = [list(GlobalBatchSampler([30, 50], **options, rank=r, world_size=4)) for r in range(4)]
    assert [
        list(itertools.chain.from_iterable(part[i] for part in parts)) for i in range(len(whole))
    ] == whole


@pytest.mark.parametrize("weights", [[1.0], [-1.0, 2.0], [0.0, 0.0]])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(DataError, match="weights must be 2, one per source"):
        GlobalBatchSampler([30, 50], 8, weights=weights)


def test_a_source_too_small_for_a_batch_can_have_no_weight():
    with pytest.raises(DataError, match="source 0 has 5 examples, fewer than the 8 of a batch"):
        GlobalBatchSampler([5, 50], 8, weights=[1, 1])
    assert len(GlobalBatchSampler([5, 50], 8, weights=[0, 1])) == 6


def test_drawn_passages_keep_the_names_of_their_documents(tmp_path):
    record = {"query": "q", "pos": ["a", "b"], "neg": ["c", "d"]}
    record |= {"pos_ids": ["A", "B"], "neg_ids": ["C", "D"]}
    named = write_lines(tmp_path / "named.jsonl", [record])
    dataset = ContrastiveDataset(read_pairs([named]), train_group_size=4)
    drawn = [dataset[0, epoch, 0] for epoch in range(8)]
    for example in drawn:
        assert example.document_ids == tuple(text.upper() for text in example.passages)
    assert len({example.passages for example in drawn}) > 1

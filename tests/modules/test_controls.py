"""A seed control is a replicate in everything that a seed decides, in one run and between runs."""

import json

import pytest
import torch

from hrsa_lightning.callbacks import RepresentationRecorder, SimilarityMonitor
from hrsa_lightning.data import ArmBatches, ContrastiveBatch, ContrastiveDataModule
from hrsa_lightning.modules import PairedContrastiveModule
from hrsa_lightning.similarity import read_history
from tests.contrastive_runs import WORDS, fit, make_arm, write_pairs

SEEDS = {"base": 1, "replicate": 2}
FULL = {"lora": None}  # without adapters and dropout the batches alone tell two seeds apart


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    write_pairs(folder / "pairs.jsonl")
    make_arm(folder / "backbone")
    texts = [" ".join(WORDS[i:] + WORDS[: i // 2]) for i in range(len(WORDS))]
    (folder / "probes.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return folder


def _monitor(place, folder, reference):
    return SimilarityMonitor(
        arms="arms",
        reference=reference,
        probes=str(place / "probes.jsonl"),
        layers=["**.layers.*", "output"],
        metrics=["cka", "knn_overlap_10"],
        history=folder / "similarity.jsonl",
        every_n_train_steps=2,
    )


def _train(place, folder, arms, *callbacks):
    built = {name: make_arm(place / "backbone", SEEDS[name], **FULL) for name in arms}
    module = PairedContrastiveModule(built, seeds=SEEDS, lr=1e-2)
    fit(module, place / "pairs.jsonl", folder, callbacks=callbacks, max_steps=4)
    return module


def _values(folder):
    return {(m.metric, m.layer, m.step): m.value for m in read_history(folder / "similarity.jsonl")}


def test_runs_apart_give_through_a_trace_what_one_run_gives_to_the_bit(place, tmp_path):
    side_by_side = tmp_path / "side_by_side"
    _train(place, side_by_side, SEEDS, _monitor(place, side_by_side, "arm:base"))
    trace = tmp_path / "trace"
    recorder = RepresentationRecorder(
        trace,
        str(place / "probes.jsonl"),
        ["**.layers.*", "output"],
        arms="arms",
        every_n_train_steps=2,
    )
    _train(place, tmp_path, ["base"], recorder)
    apart = tmp_path / "apart"
    _train(place, apart, ["replicate"], _monitor(place, apart, str(trace)))
    expected = _values(side_by_side)
    assert _values(apart) == expected
    ends = {key[:2]: value for key, value in expected.items() if key[2] == 4}
    starts = {key[:2]: value for key, value in expected.items() if key[2] == 0}
    assert starts["cka", "output"] > 1 - 1e-9 > ends["cka", "output"]


def test_arms_of_one_seed_share_their_batches(place):
    tokenizer = make_arm(place / "backbone").tokenizer

    def first_batch(seeds):
        data = ContrastiveDataModule(
            [place / "pairs.jsonl"],
            dict.fromkeys(["a", "b", "c"], tokenizer),
            batch_size=8,
            train_group_size=2,
            seed=1,
            seeds=seeds,
        )
        return next(iter(data.train_dataloader()))

    shared = first_batch({"b": 1})
    assert isinstance(shared, ContrastiveBatch)
    assert shared.of("a") is shared.of("c") is shared
    own = first_batch({"b": 2})
    assert isinstance(own, ArmBatches)
    assert len(own) == 8
    assert own.of("a") is own.of("c")
    assert torch.equal(own.of("a").passage_ids, shared.passage_ids)
    assert torch.equal(own.of("b").passage_ids, first_batch(dict.fromkeys("abc", 2)).passage_ids)
    assert not torch.equal(own.of("b").query_ids.sort().values, shared.query_ids.sort().values)
    moved = own.to("meta")
    assert moved.of("b").query_ids.device.type == "meta"
    assert moved.of("a") is moved.of("c")

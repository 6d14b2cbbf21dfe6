"""The shipped default is complete, loads offline, and keeps its splits apart."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import BACKBONES, card, controls
from tiny.evaluate import complete, is_beyond_noise, load_tokenizer, selection_problems
from tiny.lm import load_model
from tiny.pairs import held_out_texts, widen_probes
from tiny.splits import split_of_id
from tiny.tasks import is_correct
from tiny.texts import DOMAINS, draw_traces
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from hrsa_lightning import EmbeddingModel
from hrsa_lightning.functional import knn_overlap, linear_cka

TINY = Path(__file__).resolve().parents[2] / "hrsa_lightning" / "assets" / "tiny"
SOURCES = ("definition", "example", "code")


def read(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (TINY / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train() -> list[dict[str, object]]:
    return [line for source in SOURCES for line in read(f"pairs_train.{source}.jsonl")]


@pytest.fixture(scope="module")
def test_pairs() -> list[dict[str, object]]:
    return read("pairs_test.jsonl")


@pytest.fixture(scope="module")
def probes() -> list[dict[str, object]]:
    return read("probes.jsonl")


def test_pairs_have_the_authors_shape(train, test_pairs) -> None:
    for pair in [*train, *test_pairs]:
        assert len(pair["query"]) == 2
        assert len(pair["pos"]) == 1
        assert len(set(pair["neg"])) == 3
        assert pair["pos"][0] not in pair["neg"]
        assert all(text.strip() for text in [*pair["query"], *pair["pos"], *pair["neg"]])


def test_no_query_and_no_positive_occurs_twice_in_a_source(train, test_pairs) -> None:
    for source in SOURCES:
        lines = [p for p in [*train, *test_pairs] if p["id"].startswith(f"{source}/")]
        for texts in ([p["query"][1] for p in lines], [p["pos"][0] for p in lines]):
            assert len(set(texts)) == len(texts)


def test_counts(train, test_pairs, probes) -> None:
    assert 5000 <= len(train) <= 8000
    assert {p["id"].split("/")[0] for p in train} == set(SOURCES)
    assert Counter(p["source"] for p in test_pairs) == {
        "definition": 200,
        "example": 200,
        "code": 150,
    }
    labels = Counter(p["label"] for p in probes)
    assert labels == dict.fromkeys(("noun", "verb", "adjective", "code"), 128)
    assert set(probes[0]) == {"id", "text", "label"}


def test_wide_probes_are_drawn_from_the_training_pairs() -> None:
    lines = [
        line for source in ("definition", "code") for line in read(f"pairs_train.{source}.jsonl")
    ]
    probes = read("probes_wide.jsonl")
    assert probes == widen_probes(lines)
    assert len({probe["text"].lower() for probe in probes}) == len(probes) == 4096


def test_traces_are_of_held_out_problems_and_right() -> None:
    traces = read("traces.jsonl")
    assert traces == draw_traces()
    assert all(is_correct(str(trace["answer"]), str(trace["solution"])) for trace in traces)


def test_domains_are_even_and_in_no_training_pair(train) -> None:
    domains = read("domains.jsonl")
    assert Counter(line["label"] for line in domains) == dict.fromkeys(DOMAINS, 96)
    assert held_out_texts(domains).isdisjoint(held_out_texts(train))


def test_ids_fall_in_their_split(train, test_pairs, probes) -> None:
    for split, lines in (("train", train), ("test", test_pairs), ("probe", probes)):
        assert {split_of_id(line["id"]) for line in lines} == {split}


def test_no_text_is_shared_between_splits(train, test_pairs, probes) -> None:
    texts = [held_out_texts(lines) for lines in (train, test_pairs, probes)]
    assert texts[0].isdisjoint(texts[1])
    assert texts[0].isdisjoint(texts[2])
    assert texts[1].isdisjoint(texts[2])


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_loads_offline_as_any_tool_would(name: str) -> None:
    folder = TINY / name
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.architectures == ["Qwen2ForCausalLM"]
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == 1_312_896
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|endoftext|>")
    assert tokenizer.padding_side == "right"
    assert len(tokenizer) == model.config.vocab_size
    batch = tokenizer(["a tree", "a kind of tree"], padding=True, return_tensors="pt")
    body = AutoModel.from_pretrained(folder)
    expected = model.model(**batch).last_hidden_state
    assert torch.equal(body(**batch).last_hidden_state, expected)


def test_backbones_share_one_tokenizer() -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert len({(TINY / name / file).read_bytes() for name in BACKBONES}) == 1


def test_tokenizer_offsets_cover_the_text() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY / "base")
    text = "Instruct: Find the function\nQuery: add 12 to “x”"
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    covered = {index for start, end in offsets for index in range(start, end)}
    assert covered == set(range(len(text)))


def test_probe_and_pair_texts_fit_the_positions(train, test_pairs, probes) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY / "base")
    texts = sorted(held_out_texts([*train, *test_pairs, *probes]))
    lengths = sorted(len(ids) for ids in tokenizer(texts)["input_ids"])
    assert lengths[len(lengths) // 2] <= 30
    assert lengths[-1] <= 200


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((TINY / "build.json").read_text())


def test_tokenizer_is_the_one_the_base_was_pretrained_with() -> None:
    written = Tokenizer.from_file(str(TINY / "base" / "tokenizer.json"))
    loaded = PreTrainedTokenizerFast.from_pretrained(TINY / "base")
    texts = [pair["pos"][0] for pair in read("pairs_train.code.jsonl")[:50]]
    assert loaded(texts)["input_ids"] == [one.ids for one in written.encode_batch(texts)]


def test_recorded_weight_changes_are_those_of_the_files(record) -> None:
    base = controls.read_weights(TINY / "base")
    for name in BACKBONES[1:]:
        change = controls.relative_change(base, controls.read_weights(TINY / name))
        assert change == pytest.approx(record["relative_weight_change"][name], abs=1e-4)
        assert change > 0.005


def test_recorded_similarities_are_those_of_the_files(record, probes) -> None:
    texts = [probe["text"] for probe in probes]
    base, prorl = (
        EmbeddingModel.from_pretrained(f"embedded:tiny/{name}", attention="causal").embed(texts)
        for name in ("base", "prorl")
    )
    recorded = record["similarity"]["prorl"]
    assert recorded["cka"] == pytest.approx(float(linear_cka(prorl, base)), abs=1e-3)
    overlap = float(knn_overlap(prorl, base, k=10))
    assert recorded["knn_overlap_10"] == pytest.approx(overlap, abs=5e-3)


def test_recorded_accuracies_rise_beyond_noise(record) -> None:
    for name in BACKBONES[1:]:
        assert is_beyond_noise(record["accuracy"]["rise_over_base"][name])
    assert record["rlvr"]["num_steps"] == record["sft"]["num_steps"]


@pytest.mark.parametrize(
    ("name", "families", "factor"),
    [("rlvr", ("arithmetic", "parity"), 1.3), ("prorl", ("comparison", "reversal"), 1.05)],
)
def test_reinforced_backbones_answer_selection_problems_better(name, families, factor) -> None:
    tokenizer = load_tokenizer(TINY / "base")
    problems = [p for p in selection_problems() if p.family in families]
    prompts = [problem.prompt for problem in problems]
    right = []
    for backbone in ("base", name):
        completions = complete(load_model(TINY / backbone), tokenizer, prompts, do_sample=False)
        graded = zip(problems, completions, strict=True)
        right.append(sum(is_correct(problem.answer, text) for problem, text in graded))
    assert right[1] > factor * right[0]


def test_card_quotes_the_record(record) -> None:
    shipped = (TINY / "README.md").read_text(encoding="utf-8")
    assert card.render(record, card.similarity_section(shipped)) == shipped


def test_weights_are_finite_and_files_are_small_and_readable() -> None:
    files = [path for path in TINY.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15 * 2**20
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o644, path
    for name in BACKBONES:
        weights = load_file(TINY / name / "model.safetensors")
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
        assert "lm_head.weight" not in weights

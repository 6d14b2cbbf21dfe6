"""The engine in loops of plain PyTorch, with and without several processes."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from hrsa_lightning.errors import ConfigError, DataError, HRSAWarning
from hrsa_lightning.functional import linear_cka
from hrsa_lightning.metrics import hrsa_metrics
from hrsa_lightning.similarity import (
    Measurement,
    RepresentationTrace,
    SimilarityEvaluator,
    preserve_training_state,
)
from hrsa_lightning.similarity.history import Evaluation, append_record, read_history
from hrsa_lightning.similarity.trace import TraceWriter

INPUTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(7))
BATCHES = list(INPUTS.split(8))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4)
    )


def loop(models, evaluate, steps=6):
    """Train by hand; returns all weights and buffers."""
    torch.manual_seed(3)
    for model in models.values():
        model.train()
    optimizer = torch.optim.AdamW([p for m in models.values() for p in m.parameters()], lr=0.05)
    for step in range(steps):
        evaluate(step)
        optimizer.zero_grad()
        sum(model(INPUTS).square().mean() for model in models.values()).backward()
        optimizer.step()
    return [value.clone() for model in models.values() for value in model.state_dict().values()]


def quiet(**options):
    """An evaluator of two models with few metrics."""
    defaults = {"probes": BATCHES, "layers": ["?", "output"], "metrics": ["cka", "knn_overlap_5"]}
    return {**defaults, **options}


@torch.no_grad()
def output(model):
    was_training = model.training
    result = model.eval()(INPUTS)
    model.train(was_training)
    return result


def test_the_loop_of_the_documentation():
    models = {"base": network(0), "rlvr": network(1)}
    evaluator = SimilarityEvaluator(
        models,
        probes=BATCHES,
        layers=["0", "output"],
        reference=["initial", "arm:base"],
        metrics=hrsa_metrics(k=(5,)),
    )
    found = {}

    def evaluate(step):
        if step % 2 == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", HRSAWarning)
                found[step] = evaluator.evaluate(step)

    loop(models, evaluate)
    assert list(found) == [0, 2, 4]
    series = {m.series for m in found[4] if m.metric == "cka"}
    places = {(s.arm, s.reference, s.layer) for s in series}
    compared = [("base", "initial"), ("rlvr", "initial"), ("rlvr", "base")]
    assert places == {(*pair, layer) for pair in compared for layer in ("0", "output")}
    assert {m.step for m in found[4]} == {4}
    own_start = [m for m in found[0] if m.metric == "cka" and m.reference == "initial"]
    assert [m.value for m in own_start] == pytest.approx([1.0] * 4)
    assert {m.chance for m in found[0] if m.metric == "cka"} == {0.0}
    drifted = [m.value for m in found[4] if m.metric == "cka" and m.reference == "initial"]
    assert max(drifted) < 0.9999


def test_values_are_those_of_the_functions():
    models = {"a": network(0), "b": network(1)}
    (value,) = (
        m.value
        for m in SimilarityEvaluator(models, reference="pairs", **quiet()).evaluate(0)
        if (m.metric, m.layer) == ("cka", "output")
    )
    expected = linear_cka(output(models["b"]), output(models["a"])).item()
    assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("reference", ["initial", "pairs", network(5)])
def test_training_is_bit_for_bit_as_without_it(reference):
    results = []
    for watched in (True, False):
        models = {"a": network(0), "b": network(1)}
        evaluator = SimilarityEvaluator(models, reference=reference, **quiet(layers=["output"]))
        results.append(loop(models, evaluator.evaluate if watched else lambda step: None))
        assert all(part.training for model in models.values() for part in model.modules())
        assert not any(part._forward_hooks for m in models.values() for part in m.modules())
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_lazy_weights_are_refused():
    with pytest.raises(ConfigError, match=r"expected initialized weights, got 'weight' of a lazy"):
        SimilarityEvaluator(nn.LazyLinear(3), BATCHES).evaluate(0)


def test_a_loop_goes_on_after_a_restart():
    model = network()
    first = SimilarityEvaluator(model, **quiet())
    first.evaluate(0)
    state = first.state_dict()
    loop({"": model}, lambda step: None)
    expected = first.evaluate(6)
    second = SimilarityEvaluator(model, **quiet())
    second.start(state)
    assert second.evaluate(6) == expected
    assert [m.value for m in expected if m.metric == "cka"][-1] < 0.999
    third = SimilarityEvaluator(model, **quiet(probes=BATCHES[1:]))
    third.start(state)
    with pytest.warns(HRSAWarning, match="the probes are not those of before"):
        assert not [m for m in third.evaluate(6) if m.reference]


def test_references_can_be_kept_in_files(tmp_path):
    evaluator = SimilarityEvaluator(network(), reference=["initial", network(1)], **quiet())
    expected = evaluator.evaluate(0)
    evaluator.start(folder=tmp_path, prefix="mine")
    assert evaluator.evaluate(0) == expected
    assert (tmp_path / "mine_reference_initial.safetensors").is_file()


def test_a_trace_is_compared_step_for_step(tmp_path):
    model = network()
    evaluator = SimilarityEvaluator(model, **quiet())
    fingerprints = evaluator.extractor.fingerprints
    with preserve_training_state(model):
        TraceWriter(tmp_path, fingerprints).add(0, evaluator.run(0).live)
    traced = SimilarityEvaluator(model, reference=RepresentationTrace(tmp_path), **quiet())
    found = [m for m in traced.evaluate(0) if m.metric == "cka"]
    assert [m.value for m in found] == pytest.approx([1.0] * len(found))
    with pytest.warns(HRSAWarning, match=r"has nothing for some steps \(3\)"):
        assert not [m for m in traced.evaluate(3) if m.reference]
    with pytest.raises(DataError, match="recorded on other probes"):
        SimilarityEvaluator(model, reference=RepresentationTrace(tmp_path), probes=BATCHES[1:])


def test_a_warning_is_given_once_and_says_where():
    model = network()
    with torch.no_grad():
        model[4].weight.fill_(float("nan"))
    evaluator = SimilarityEvaluator(model, **quiet())
    with pytest.warns(HRSAWarning, match=r"not finite.*\(at .*output, step 0\)"):
        evaluator.evaluate(0)
    evaluator.evaluate(1)  # warnings are errors in these tests


def test_labels():
    labels = ["even", "odd"] * 20
    batches = [(x, labels[8 * i : 8 * i + 8]) for i, x in enumerate(BATCHES)]
    options = quiet(probes={"p": batches}, layers=["output"], label_key=1)
    metrics = ["cka", "probe_transfer_accuracy"]
    found = SimilarityEvaluator(
        network(), reference=network(1), by_label=True, **{**options, "metrics": metrics}
    ).evaluate(2)
    assert {(m.metric, m.label) for m in found if m.reference} == {
        ("cka", ""),
        ("cka", "even"),
        ("cka", "odd"),
        ("probe_transfer_accuracy", ""),
    }
    assert {m.probes for m in found} == {"p"}
    assert {m.reference for m in found} == {"", "reference"}


def test_names_with_the_marks_of_tags_stay_apart(tmp_path):
    """Tags join names with these marks; measurements keep them in fields, through the file."""
    labels = ["at@home", "a/b"] * 20
    batches = [(x, labels[8 * i : 8 * i + 8]) for i, x in enumerate(BATCHES)]
    models = {"a_vs_b": network(0), "b": network(1), "initial_vs": network(2)}
    evaluator = SimilarityEvaluator(
        models,
        reference=["initial", "pairs"],
        by_label=True,
        **quiet(probes=batches, layers=["output"], label_key=1, metrics=["cka"]),
    )
    found = evaluator.evaluate(0)
    append_record(tmp_path / "similarity.jsonl", Evaluation(0, found, "similarity"))
    assert read_history(tmp_path / "similarity.jsonl") == found
    pairs = {(m.arm, m.reference) for m in found if m.reference}
    assert pairs == {(arm, "initial") for arm in models} | {
        ("b", "a_vs_b"),
        ("initial_vs", "a_vs_b"),
        ("initial_vs", "b"),
    }
    assert {m.label for m in found if m.reference} == {"", "at@home", "a/b"}
    assert len({m.series for m in found}) == len(found)
    scored = read_history(tmp_path / "similarity.jsonl")
    assert not [m for m in scored if m.reference and not m.layer], "none is a retrieval score"


def test_means_over_layers_are_values_of_their_own():
    """Of the layers before the output, with their chance levels; undefined values are left out."""
    models = {"a": network(0), "b": network(1)}
    metrics = ["cka", "inverse_row_entropy", "knn_overlap_5"]
    evaluator = SimilarityEvaluator(models, **quiet(reference="pairs", metrics=metrics))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HRSAWarning)
        found = evaluator.evaluate(3)
    means = {m.metric: m for m in found if m.layer == "mean_over_layers"}
    assert list(means) == metrics
    for metric, mean in means.items():
        layers = [m for m in found if m.metric == metric and m.layer in "01234"]
        assert len(layers) == 5
        defined = [m for m in layers if math.isfinite(m.value)]
        assert (len(defined) < 5) == (metric == "inverse_row_entropy")
        for name in ("value", "chance", "identity"):
            expected = sum(getattr(m, name) for m in defined) / len(defined)
            assert getattr(mean, name) == pytest.approx(expected, rel=1e-12)
        assert mean[3:6] == layers[0][3:6]
        assert (mean.step, mean.low, mean.null_95, mean.p_value) == (3, None, None, None)


def test_models_of_unequal_depth_share_the_layers_they_have():
    deep = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)])
    models = {"deep": deep, "flat": deep[:2]}
    evaluator = SimilarityEvaluator(models, **quiet(reference="arm:flat", metrics=["cka"]))
    with pytest.warns(HRSAWarning, match="'flat' has no 2, 3; left out, of means over layers as"):
        found = evaluator.evaluate(0)
    assert {m.layer for m in found if m.reference} == {"0", "1", "output", "mean_over_layers"}


def test_bands_are_fields():
    found = SimilarityEvaluator(
        network(), reference=network(1), num_jackknife_groups=5, **quiet(metrics=["cka"])
    ).evaluate(0)
    compared = [m for m in found if m.reference and m.layer != "mean_over_layers"]
    assert compared
    assert all(m.low < m.value < m.high for m in compared)
    assert all(m.low is None for m in found if not m.reference)


def ranked(rank, world_size):
    models = {"a": network(0), "b": network(1)}
    evaluator = SimilarityEvaluator(models, reference=["initial", "arm:a"], **quiet())
    found: list[Measurement] = []
    weights = loop(models, lambda step: found.extend(evaluator.evaluate(step)), steps=2)
    held = sorted(evaluator.extractor.probes[""].held)
    return [tuple(m) for m in found], held, [w.tolist() for w in weights]


@pytest.mark.ddp
def test_two_processes_give_the_values_of_one(ddp_pool):
    alone, _, weights = ranked(0, 1)
    for found, _, theirs in (results := ddp_pool.run(ranked)):
        assert theirs == weights
        assert [m[0] for m in found] == [m[0] for m in alone]
        assert [m[1] for m in found] == pytest.approx([m[1] for m in alone], abs=1e-5)
    assert [held for _, held, _ in results] == [[0, 2, 4], [0, 1, 3]]


def test_the_engine_imports_no_trainer():
    code = (
        "import sys, hrsa_lightning.similarity.evaluator\n"
        "found = {'lightning', 'pytorch_lightning'}\n"
        "assert not found & sys.modules.keys(), found & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_evaluation_is_calibrated_and_others_where_asked():
    evaluator = SimilarityEvaluator(network(), reference=network(1), null=20, **quiet())
    calibrated = [
        {
            m.p_value is not None
            for m in evaluator.evaluate(step, calibrate=calibrate)
            if m.reference and m.layer != "mean_over_layers"
        }
        for step, calibrate in enumerate((None, None, True))
    ]
    assert calibrated == [{True}, {False}, {True}]


def test_an_evaluation_says_how_far_it_has_come():
    said = []
    models = {"a": network(), "b": network(1)}
    evaluator = SimilarityEvaluator(models, reference="arm:a", **quiet())
    evaluator.extractor.progress = said.append
    evaluator.evaluate(0)
    batches = [f"{arm} {done} of 5" for arm in "ab" for done in range(5)]
    assert said == [*batches, *(f"comparison {number} of 6" for number in range(1, 7))]


def test_layers_that_one_dimension_dominates_are_named_once():
    model = nn.Sequential(*(nn.Linear(20, 20) for _ in range(3)))
    inputs = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.eye(20))
            layer.weight[0, 0] = 20
    evaluator = SimilarityEvaluator(model, **quiet(probes=[inputs], metrics=["cka"]))
    message = r"one dimension .* read cka_standardized \(up to 100%, at 0 to 2, output\)"
    with pytest.warns(HRSAWarning, match=message):
        evaluator.evaluate(0)
    evaluator.evaluate(1)


@pytest.mark.filterwarnings("ignore::hrsa_lightning.errors.HRSAWarning")
@pytest.mark.filterwarnings("ignore::hrsa_lightning.functional.SimilarityWarning")
def test_a_model_that_gives_all_samples_one_row_is_undefined_and_not_fatal():
    """As an untrained codebook does; every metric of the set, with its permuted levels."""
    evaluator = SimilarityEvaluator(
        nn.Linear(6, 4), torch.randn(60, 6), forward=lambda _, x: torch.ones(len(x), 4)
    )
    values = {m.metric: m.value for m in evaluator.evaluate(0)}
    assert math.isnan(values["cka"])
    assert math.isnan(values["dimension_correlation"])

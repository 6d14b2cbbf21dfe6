"""The compare command, from its command line to its files, on models of a few kilobytes."""

import csv
import errno
import json
import math
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hrsa_lightning.compare import __main__ as compare
from hrsa_lightning.compare import comparison as comparisons
from hrsa_lightning.compare import representations, results
from hrsa_lightning.compare.options import read_model_pairs
from hrsa_lightning.compare.representations import RepresentationWriter
from hrsa_lightning.io.resources import resource_files
from hrsa_lightning.runs.loading import load_model
from hrsa_lightning.train import __main__ as train
from tests.contrastive_runs import WORDS, write_pairs
from tests.histories import read_tags
from tests.tiny import make_backbone

NUM_PROBES = 80
LENGTHS = ["--max-length", "32", "--batch-size", "16"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two backbones of one family, a deeper and wider one, and labeled texts."""
    folder = tmp_path_factory.mktemp("compare")
    make_backbone(folder / "base", seed=0)
    make_backbone(folder / "rlvr", seed=0, initializer_range=0.21)
    make_backbone(folder / "large", "qwen3", hidden=48, layers=5, seed=3)
    draw = random.Random(1)
    records = [
        {
            "text": " ".join(draw.choices(WORDS, k=draw.randint(3, 12))),
            "label": draw.choice(["even", "odd"]),
            "topic": "x",
        }
        for _ in range(NUM_PROBES)
    ]
    (folder / "probes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    write_pairs(folder / "pairs.jsonl")
    return folder


@pytest.fixture(autouse=True)
def _few_pictures(request, monkeypatch):
    """Drawing takes longer than all the rest here; one test looks at the pictures."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(results, "save_figure", lambda figure, path: None)


def _train(place, output, *settings):
    recipe = place / "watched.yaml"
    recipe.write_text(f"""
arms:
  base: {{backbone: "{place / "base"}"}}
  rlvr: {{backbone: "{place / "rlvr"}", seed: 3}}
data: {{train: ["{place / "pairs.jsonl"}"], batch_size: 8, train_group_size: 3,
       query_length: 32, passage_length: 32}}
optimizer: {{lr: 1e-2}}
trainer: {{accelerator: cpu, max_steps: 3, log_every_n_steps: 1, enable_progress_bar: false}}
checkpoint: {{every_n_train_steps: 2}}
callbacks:
  similarity:
    _target_: hrsa_lightning.callbacks.SimilarityMonitor
    arms: arms
    reference: "arm:base"
    probes: "{place / "probes.jsonl"}"
    layers: ["**.layers.*", output]
    max_length: 32
    batch_size: 16
    every_n_train_steps: 1
    heatmap_every_n_evaluations: 0
""")
    settings = [f"recipe={recipe}", f"output_dir={output}", *settings]
    assert train.main(settings) == 0
    (run,) = (output / "watched").iterdir()
    return run


@pytest.fixture(scope="module", params=["lora", "full"])
def run(request, place, tmp_path_factory):
    settings = ["model.lora=null", "model.pooling=last"] if request.param == "full" else []
    return _train(place, tmp_path_factory.mktemp(request.param), *settings)


def _compare(*arguments, code=0):
    assert compare.main([str(argument) for argument in arguments]) == code


def _values(out, label=""):
    return {
        (comparison["name"], value["layer"], value["metric"]): value["value"]
        for comparison in json.loads((out / "results.json").read_text())["comparisons"]
        for value in comparison["values"]
        if value["label"] == label
    }


def _history(run, step):
    (record,) = (r for r in read_tags(run / "similarity.jsonl") if r["step"] == step)
    tags = (tag.split("/") for tag in record["values"])
    return {
        (parts[2], parts[3], parts[1]): record["values"]["/".join(parts)]
        for parts in tags
        if len(parts) == 4 and "_vs_" in parts[2]
    }


@pytest.mark.parametrize("step", [2, 3])
def test_gives_the_numbers_of_the_monitor_in_the_loop(place, run, tmp_path, step):
    """At a checkpoint, and at the end; both arms of it, named and unnamed."""
    there = run if step == 3 else run / "checkpoints" / "step_000002"
    models = [there] if step == 3 else [f"{there}:base", f"{there}:rlvr"]
    _compare(*models, "--texts", place / "probes.jsonl", *LENGTHS, "--out", tmp_path)
    expected, found = _history(run, step), _values(tmp_path)
    assert expected.keys() == found.keys()
    assert len({metric for _, _, metric in expected}) == 14
    for key, value in expected.items():
        assert math.isfinite(value), key
        assert found[key] == pytest.approx(value, abs=1e-5), key


def test_writes_values_with_chance_levels_pictures_and_a_page(place, tmp_path, capsys):
    out = tmp_path / "out"
    _compare(
        place / "base",
        place / "rlvr",
        "--texts",
        place / "probes.jsonl",
        "--by-label",
        "--standardize",
        "--out",
        out,
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "cka_standardized_rlvr_vs_base.png",
        "dimension_correlation_rlvr_vs_base.png",
        "layers.png",
        "report.md",
        "results.csv",
        "results.json",
    ]
    content = json.loads((out / "results.json").read_text())
    (comparison,) = content["comparisons"]
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(comparison["values"])
    for row, value in zip(rows, comparison["values"], strict=True):
        assert (row["layer"], row["label"], row["metric"]) == (
            value["layer"],
            value["label"],
            value["metric"],
        )
        assert float(row["value"]) == pytest.approx(
            math.nan if value["value"] is None else value["value"], nan_ok=True
        )
    chance = {v["metric"]: v["chance"] for v in comparison["values"] if not v["label"]}
    assert chance["knn_overlap_10"] == pytest.approx(0.068, abs=0.005)
    assert chance["inverse_row_entropy"] == pytest.approx(0.199, abs=0.005)
    assert {value["label"] for value in comparison["values"]} == {"", "even", "odd"}
    page = (out / "report.md").read_text()
    for picture in ("cka_standardized_rlvr_vs_base.png", "layers.png"):
        assert f"({picture})" in page
        assert (out / picture).stat().st_size > 10_000
    assert "Within labels at output" in page
    cka = next(v for v in comparison["values"] if v["metric"] == "cka" and v["layer"] == "output")
    assert f"{cka['value']:.3f}" in page
    assert f"{cka['value']:.3f}" in capsys.readouterr().out
    everywhere = [v for v in comparison["values"] if not v["label"]]
    at_output = {v["metric"]: v["value"] for v in everywhere if v["layer"] == "output"}
    for kind, metric in (
        ("debiased", "cka"),
        ("plain", "cka_plain"),
        ("standardized", "cka_standardized"),
        ("dimension_correlation", "dimension_correlation"),
    ):
        diagonal = comparison["heatmap"][kind][-1][-1]
        assert diagonal == pytest.approx(at_output[metric], abs=1e-6), kind


def test_a_model_against_itself_is_the_same(place, tmp_path):
    _compare(
        f"one={place / 'base'}",
        f"two={place / 'base'}",
        "--texts",
        place / "probes.jsonl",
        "--protocol",
        "in_sample",
        "--out",
        tmp_path,
    )
    values = {
        metric: v for (name, layer, metric), v in _values(tmp_path).items() if layer == "layer_1"
    }
    for metric in ("cka", "cka_plain", "knn_overlap_10", "procrustes_global_cosine"):
        assert values[metric] == pytest.approx(1.0, abs=1e-6), metric
    assert values["procrustes_residual"] == pytest.approx(0.0, abs=1e-6)


def test_several_models_of_other_depth_and_width_give_a_matrix(place, tmp_path):
    texts = place / "probes.jsonl"
    models = (place / "base", place / "rlvr", place / "large")
    _compare(*models, "--texts", texts, *LENGTHS, "--out", tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    named = {comparison["name"]: comparison for comparison in content["comparisons"]}
    assert list(named) == ["rlvr_vs_base", "large_vs_base", "large_vs_rlvr"]
    large = named["large_vs_base"]
    assert {(v["layer"], v["reference_layer"]) for v in large["values"]} == {
        ("layer_2", "layer_0"),
        ("layer_4", "layer_1"),
        ("output", "output"),
        ("mean_over_layers", "mean_over_layers"),
    }
    assert "5 layers against 2, paired by relative depth" in large["notes"]
    heatmap = torch.tensor(large["heatmap"]["debiased"])
    assert heatmap.shape == (6, 3)
    assert large["heatmap"]["dimension_correlation"] is large["heatmap"]["standardized"] is None
    metrics = {value["metric"] for value in large["values"]}
    assert "cka" in metrics
    assert "dimension_correlation" not in metrics
    assert any("equal widths" in note for note in large["notes"])
    page = (tmp_path / "report.md").read_text()
    assert "### cka" in page
    assert "(cka_large_vs_base.png)" in page
    assert "(dimension_correlation_large_vs_base.png)" not in page
    assert "(dimension_correlation_rlvr_vs_base.png)" in page
    assert "layer_2 ~ layer_0" in page


@pytest.fixture(scope="module")
def encoder(place):
    """A BERT of a few kilobytes, as a plain folder and as one of sentence-transformers."""
    transformers = pytest.importorskip("transformers")
    st = pytest.importorskip("sentence_transformers")
    config = transformers.BertConfig(
        vocab_size=384, hidden_size=24, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(place / "bert")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "base")
    tokenizer.save_pretrained(place / "bert")
    model = st.SentenceTransformer(str(place / "bert"), device="cpu")
    model.save_pretrained(str(place / "packaged"))
    return model


@pytest.mark.filterwarnings("ignore")
def test_encoders_and_folders_of_sentence_transformers(place, encoder, tmp_path, capsys):
    out, models = tmp_path / "out", ("base", "bert", "packaged")
    flags = ["--metrics", "cka,knn_overlap", "--null", "0", "--keep-representations"]
    texts_of = ["--texts", place / "probes.jsonl", "--out", out, *LENGTHS]
    _compare(*(place / name for name in models), *texts_of, *flags)
    said = capsys.readouterr().out
    assert "The models differ in attention: base causal, bert its own, packaged its own." in said
    assert "most of the distance can be the mask" in said
    content = json.loads((out / "results.json").read_text())
    assert [model["layers"] for model in content["models"]] == [2, 3, 3]
    assert [model["width"] for model in content["models"]] == [32, 24, 24]
    kept = {path.name.rpartition("-")[0]: path for path in (out / "representations").iterdir()}
    texts = [json.loads(line)["text"] for line in (place / "probes.jsonl").read_text().splitlines()]
    encoder.max_seq_length = 32
    expected = torch.as_tensor(encoder.encode(texts)).sort(0).values
    for name in ("bert", "packaged"):
        rows = load_file(kept[name] / "output.safetensors")["rows"]
        torch.testing.assert_close(rows.sort(0).values, expected, atol=1e-5, rtol=1e-5)
        assert (kept[name] / "layer_2.safetensors").is_file()
    _compare(place / "base", place / "bert", *texts_of, "--level", "token", code=2)
    assert "--level token: expected decoders, got bert" in capsys.readouterr().err


def test_token_level_has_a_row_per_token(place, tmp_path, monkeypatch):
    monkeypatch.setattr(comparisons, "HEATMAP_ROWS", 50)
    options = ["--level", "token", "--metrics", "cka,procrustes", "--exclude-first-token"]
    options += ["--layers", "last", "--limit", "20", "--keep-representations", "--out", tmp_path]
    _compare(place / "base", place / "rlvr", "--texts", place / "probes.jsonl", *options)
    content = json.loads((tmp_path / "results.json").read_text())
    kept = [load_file(p)["rows"] for p in sorted(tmp_path.glob("representations/*/*.safetensors"))]
    assert len(kept) == 4
    assert {tuple(rows.shape) for rows in kept} == {(content["texts"]["rows"], 32)}
    assert content["texts"]["rows"] > 60
    assert 25 <= content["comparisons"][0]["heatmap"]["num_samples"] <= 50
    assert "rows, evenly spaced" in (tmp_path / "report.md").read_text()
    assert {layer for _, layer, _ in _values(tmp_path)} == {"layer_1", "output"}


def test_kept_representations_are_not_made_again(place, tmp_path, monkeypatch):
    ran = []

    def counted(source, model):
        ran.append(source.place.name)
        return load_model(source, model)

    monkeypatch.setattr(representations, "load_model", counted)
    backbone = tmp_path / "changing"
    shutil.copytree(place / "base", backbone)
    command = [backbone, place / "rlvr", "--texts", place / "probes.jsonl", "--out", tmp_path / "o"]
    command += ["--metrics", "cka", "--keep-representations"]
    _compare(*command)
    first = _values(tmp_path / "o")
    _compare(*command)
    assert ran == ["changing", "rlvr"]
    assert _values(tmp_path / "o") == first
    make_backbone(backbone, seed=7)
    _compare(*command)
    assert ran == ["changing", "rlvr", "changing"]
    assert _values(tmp_path / "o") != first
    _compare(*command, "--max-length", "8")
    assert ran[3:] == ["changing", "rlvr"]
    _compare(*command, "--no-resume")
    assert ran[5:] == ["changing", "rlvr"]


def test_an_interrupted_call_goes_on(place, tmp_path, monkeypatch, capsys):
    ran = []

    def stop_at_second(source, model):
        ran.append(source.place.name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return load_model(source, model)

    monkeypatch.setattr(representations, "load_model", stop_at_second)
    command = [place / "base", place / "rlvr", "--texts", place / "probes.jsonl", "--out", tmp_path]
    _compare(*command, "--metrics", "cka", code=130)
    assert [path.name for path in tmp_path.iterdir()] == ["representations"]
    _compare(*command, "--metrics", "cka")
    assert ran == ["base", "rlvr", "rlvr"]
    assert not (tmp_path / "representations").exists()


def test_attention_follows_the_config_or_the_option(place, tmp_path):
    folder = tmp_path / "two_way"
    shutil.copytree(place / "base", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    command = [place / "base", folder, "--texts", place / "probes.jsonl", "--metrics", "cka"]
    _compare(*command, "--out", tmp_path / "a")
    content = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [model["attention"] for model in content["models"]] == ["causal", "bidirectional"]
    assert "differ in attention" in (tmp_path / "a" / "report.md").read_text()
    _compare(*command, "--attention", "bidirectional", "--out", tmp_path / "b")
    assert _values(tmp_path / "a")["two_way_vs_base", "layer_1", "cka"] < 0.999
    assert _values(tmp_path / "b")["two_way_vs_base", "layer_1", "cka"] == pytest.approx(1.0)


def test_adapter_alone_goes_on_its_base(place, run, tmp_path, capsys):
    if not (run / "adapters" / "base" / "adapter_config.json").is_file():
        pytest.skip("the run trained all weights")
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "adapters" / "base", adapter)
    out = tmp_path / "out"
    command = [f"{run}:base", adapter, "--texts", place / "probes.jsonl", "--metrics", "cka"]
    _compare(*command, "--attention", "bidirectional", "--out", out)
    assert _values(out)["adapter_vs_base", "output", "cka"] == pytest.approx(1.0)
    shutil.rmtree(out)
    _compare(*command, "--base", place / "large", "--out", out, code=2)
    message = capsys.readouterr().err
    assert "does not fit the backbone" in message
    assert len(message.strip().splitlines()) == 1
    assert not list(out.glob("*.*"))


MISTAKES = [
    (["{place}/base"], ["--texts", "{place}/probes.jsonl"], "at least two models"),
    (["{place}/base", "{place}/bse"], ["--texts", "{place}/probes.jsonl"], "no such folder"),
    (["{place}/base", "{place}/rlvr"], ["--texts", "{place}/prbes.jsonl"], "did you mean"),
    (
        ["{place}/base", "{place}/rlvr"],
        ["--texts", "{place}/probes.jsonl", "--column", "content"],
        'text: no column "content"; found text, label, topic',
    ),
    (
        ["{place}/base", "{place}/rlvr"],
        ["--texts", "{place}/probes.jsonl", "--label", "class"],
        'label: no column "class"; found text, label, topic',
    ),
    (["{place}/base", "{place}/rlvr"], ["--texts", "{empty}"], 'empty.jsonl:2: "text" is empty'),
    (
        ["{place}/base", "{place}/rlvr"],
        ["--texts", "{place}/probes.jsonl", "--limit", "7"],
        "at least 11 rows, got 7",
    ),
    (
        ["{place}/base", "{place}/rlvr"],
        ["--texts", "{place}/probes.jsonl", "--metrics", "ckka"],
        "Did you mean 'cka'",
    ),
    (
        ["{place}/base", "{place}/rlvr"],
        ["--texts", "{place}/probes.jsonl", "--by-label", "--label", "topic"],
        "--by-label: needs texts with two labels",
    ),
    (
        ["{place}/base", "{place}/rlvr"],
        ["--texts", "{place}/probes.jsonl", "--layers", "blocks.*"],
        "layers: 'blocks.*' matches no submodule of base",
    ),
    (
        ["{place}/base", "{place}/rlvr"],
        ["--texts", "{place}/probes.jsonl", "--device", "cuda:99"],
        "--device cuda:99",
    ),
    (
        ["{place}/base", "{other_tokens}"],
        ["--texts", "{place}/probes.jsonl", "--level", "token"],
        "different tokens",
    ),
    (["{place}/base", "{place}/rlvr"], ["--texts", "hub:nobody/nothing"], "hub:nobody/nothing"),
]


@pytest.fixture(scope="module")
def odd(place, tmp_path_factory):
    """Things that cannot be compared."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "empty.jsonl").write_text('{"text": "fine"}\n{"text": " "}\n')
    other = folder / "other_tokens"
    shutil.copytree(place / "base", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {
        "place": place,
        "empty": folder / "empty.jsonl",
        "other_tokens": other,
    }


@pytest.mark.parametrize(("models", "options", "message"), MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(odd, tmp_path, capsys, models, options, message):
    out = tmp_path / "out"
    _compare(*(text.format(**odd) for text in [*models, *options]), "--out", out, code=2)
    captured = capsys.readouterr().err
    lines = [line for line in captured.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured
    assert message in lines[0]
    assert not out.exists()


def test_a_full_disk_is_said_before_a_model_runs(place, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    texts = place / "probes.jsonl"
    out = tmp_path / "out"
    _compare(place / "base", place / "rlvr", "--texts", texts, "--out", out, code=2)
    assert "representations need 0.0 GB, 0.0 GB are free" in capsys.readouterr().err
    assert not out.exists()


def test_a_disk_that_fills_up_leaves_nothing_half_written(place, tmp_path, monkeypatch, capsys):
    def full(self, about):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RepresentationWriter, "finish", full)
    texts, out = place / "probes.jsonl", tmp_path / "out"
    _compare(place / "base", place / "rlvr", "--texts", texts, "--out", out, code=2)
    assert f"error: --out {out}: No space left on device" in capsys.readouterr().err
    assert not out.exists()


def test_out_that_is_a_file_is_refused(place, tmp_path, capsys):
    out = tmp_path / "out"
    out.write_text("mine")
    _compare(
        place / "base", place / "rlvr", "--texts", place / "probes.jsonl", "--out", out, code=2
    )
    assert f"--out {out}" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_help_names_every_option_on_one_screen(capsys):
    with pytest.raises(SystemExit) as done:
        compare.main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 100
    options = {name for action in compare._parser()._actions for name in action.option_strings}
    assert {name for name in options if name not in text} == {"-h", "--help"}


def test_pairs_and_several_texts_in_one_call(place, tmp_path, capsys):
    pairs = tmp_path / "pairs.yaml"
    pairs.write_text(
        f"near: {{kind: RLVR, base: {place / 'base'}, tuned: {place / 'rlvr'}}}\n"
        f"gone: {{kind: SFT, base: {place / 'base'}, tuned: {tmp_path / 'none'}}}\n"
    )
    texts = tmp_path / "texts.yaml"
    probes = place / "probes.jsonl"
    texts.write_text(
        f"words: {{path: {probes}, level: pooled, limit: 20}}\n"
        f"tokens: {{path: {probes}, text: '{{topic}} {{text}}', level: token, max_tokens: 240}}\n"
    )
    out = tmp_path / "out"
    command = ["--pairs", str(pairs), "--texts", str(texts), "--layers", "last", "--null", "0"]
    command += ["--metrics", "cka,dimension_correlation", "--out", str(out), *LENGTHS]
    assert compare.main(command) == 0
    assert "gone is left out: " in capsys.readouterr().out
    with (out / "overview.csv").open() as file:
        rows = {(row["pair"], row["texts"]): row for row in csv.DictReader(file)}
    assert {name: int(row["rows"]) for name, row in rows.items()} == {
        ("near", "words"): 20,
        ("near", "tokens"): 240,
    }
    assert {row["kind"] for row in rows.values()} == {"RLVR"}
    assert {row["comparison"] for row in rows.values()} == {"rlvr_vs_base"}
    for row in rows.values():
        assert (out / row["folder"] / "report.md").is_file()
        assert 0 < float(row["cka"]) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs", "paper", "A", "B"], "expected models, or --pairs"),
        (["--pairs", "paper:qwen3"], "--pairs paper:qwen3: expected one of .*Did you mean"),
        (["--pairs", "none.yaml"], "--pairs none.yaml: .*no such file"),
        (["--pairs", "tiny", "--texts", "preset:tiny_labels"], "expected names that differ"),
    ],
)
def test_mistakes_of_groups_get_one_line(arguments, message, capsys):
    assert compare.main([*arguments, "--texts", "preset:tiny_labels"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 5", "--pairs a: expected texts base, tuned and kind, got 5"),
        ("a: {base: A}", "--pairs a: expected texts base, tuned and kind, got {'base': 'A'}"),
        ("a: {base: 5, tuned: B}", "--pairs a: expected texts base"),
        ("a: {base: A, tuned: B, other: C}", "--pairs a: expected texts base"),
    ],
)
def test_mistakes_in_a_file_of_pairs(content, message, tmp_path, capsys):
    path = tmp_path / "pairs.yaml"
    path.write_text(content)
    assert compare.main(["--pairs", str(path), "--texts", "preset:tiny_labels"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--texts", "preset:tiny_labels", "--pairs"],
        ["embedded:tiny/base", "embedded:tiny/rlvr", "--texts"],
    ],
)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: {path: A, path: B}", " line 1: not valid YAML (the key 'path' twice"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("{}", "expected a mapping of names, got an empty one"),
        ("[A, B]", "expected a mapping of keys, got list"),
    ],
)
def test_files_of_names_are_read_as_recipes_are(arguments, content, message, tmp_path, capsys):
    path = tmp_path / "names.yaml"
    path.write_text(content)
    assert compare.main([*arguments, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {arguments[-1]} {path}")
    assert message in line


def test_the_paper_pairs_are_those_of_its_tables():
    pairs = read_model_pairs("paper")
    assert {name for name, pair in pairs.items() if pair.kind == "SFT"} == {
        "qwen2.5-math-1.5b",
        "qwen3-0.6b",
    }
    assert len(pairs) == 9
    content = yaml.safe_load((Path(compare.__file__).parent / "pairs.yaml").read_text())["paper"]
    counts = Counter(table for entry in content.values() for table in entry["tables"])
    assert counts == {1: 5, 9: 8, 10: 6}
    recipes = resource_files("recipes")
    assert all(entry.get("recipe", "paper") in recipes for entry in content.values())

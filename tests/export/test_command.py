"""The export command, on runs of the tiny backbones, against sentence-transformers itself."""

import json
import shutil

import pytest
import torch

from hrsa_lightning.export.__main__ import main
from hrsa_lightning.runs.encoder import find_model
from tests.export.runs import make_run, make_whole_checkpoint
from tests.tiny import make_backbone

sentence_transformers = pytest.importorskip("sentence_transformers")

pytestmark = [
    # transformers' remark on its own rename, raised inside sentence-transformers
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

INSTRUCTION = "Given a description, find the function"
PROMPT = f"Instruct: {INSTRUCTION}\nQuery: "
TEXTS = [
    "Return the sum of two numbers.",
    "2020 was a leap year",
    "(a + b) * c",
    "中文 的 句子",
    "def add(first, second): return first + second",
    "zebra " * 200,
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, make_run(folder)


def _load(folder, **options):
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", **options)


def _differences(loaded, model, length=48):
    """Largest difference of plain texts, and that of each query."""
    plain = loaded.encode(TEXTS, convert_to_tensor=True) - model.embed(TEXTS, length)
    queries = loaded.encode(TEXTS, prompt=PROMPT, convert_to_tensor=True)
    queries = queries - model.embed([(INSTRUCTION, text) for text in TEXTS], length)
    return float(plain.abs().max()), queries.abs().amax(1)


def test_merged_export_is_the_trained_model(run, tmp_path, capsys):
    folder, models = run
    out = tmp_path / "new" / "rlvr"
    assert main([str(folder), "--arm", "rlvr", "--out", str(out)]) == 0
    assert "trust_remote_code" not in capsys.readouterr().out
    plain, queries = _differences(_load(out), models["rlvr"])
    assert plain < 1e-5
    assert queries.max() < 1e-5
    assert json.loads((out / "config.json").read_text())["is_causal"] is False
    assert [path.name for path in out.parent.iterdir()] == ["rlvr"]


def test_saved_prompts_and_lengths_are_those_of_training(run, tmp_path):
    folder, models = run
    out = tmp_path / "out"
    assert main([str(folder), "--arm", "base", "--out", str(out)]) == 0
    loaded = _load(out)
    prompts = loaded.prompts
    assert prompts["document"] == ""
    assert prompts["query"].startswith("Instruct: ")
    assert prompts["query"].endswith("\nQuery: ")
    instruction = prompts["query"].removeprefix("Instruct: ").removesuffix("\nQuery: ")
    expected = models["base"].embed([(instruction, text) for text in TEXTS], 48)
    assert torch.allclose(loaded.encode_query(TEXTS, convert_to_tensor=True), expected, atol=1e-5)
    loaded.save(str(tmp_path / "again"))
    again = _load(tmp_path / "again")
    assert torch.equal(
        loaded.encode(TEXTS, convert_to_tensor=True), again.encode(TEXTS, convert_to_tensor=True)
    )


def test_standard_modules_that_would_differ_are_refused_or_named(tmp_path, capsys):
    models = make_run(tmp_path / "run", "arms.rlvr=null", "model.pooling=weighted_mean")
    out = tmp_path / "out"
    assert main([str(tmp_path / "run"), "--out", str(out), "--standard"]) == 0
    assert "differ" in capsys.readouterr().out
    assert "differed, by up to" in (out / "README.md").read_text()
    plain, queries = _differences(_load(out), models["base"])
    assert plain < 1e-5
    assert queries.max() > 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        ["model.instruction_mask=authors"],
        ["model.pooling=last", "model.normalize=false"],
        ["model.pooling=first", "model.attention=causal"],
    ],
)
def test_what_standard_modules_can_do_needs_no_trust(tmp_path, settings):
    models = make_run(tmp_path / "run", "arms.rlvr=null", *settings)
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    plain, queries = _differences(_load(tmp_path / "out"), models["base"])
    assert plain < 1e-5
    assert queries.max() < 1e-5


def test_weighted_mean_and_last_tokens_of_whole_backbones(tmp_path):
    settings = ["model.pooling=weighted_mean", "model.lora=null", "arms.rlvr=null"]
    models = make_run(tmp_path / "run", *settings, spread=0.01)
    checkpoint = make_whole_checkpoint(tmp_path / "run", models, 3)
    for number, source in enumerate((tmp_path / "run", checkpoint)):
        out = tmp_path / str(number)
        assert main([str(source), "--out", str(out)]) == 0
        plain, queries = _differences(_load(out, trust_remote_code=True), models["base"])
        assert max(plain, float(queries.max())) < 1e-5


def test_an_adapter_alone_is_never_loaded_as_causal(run, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    from hrsa_lightning.models.paths import resolve_backbone

    folder, models = run
    out = tmp_path / "out"
    assert main([str(folder), "--arm", "rlvr", "--out", str(out), "--adapter-only"]) == 0
    assert sum(path.stat().st_size for path in out.iterdir()) < 3e6
    plain, queries = _differences(_load(out, trust_remote_code=True), models["rlvr"])
    assert max(plain, float(queries.max())) < 1e-5
    with pytest.raises(ValueError, match="trust_remote_code"):
        _load(out)
    encoder = find_model(str(out)).load()
    queries = [(INSTRUCTION, text) for text in TEXTS]
    torch.testing.assert_close(encoder.encode_queries(queries), models["rlvr"].embed(queries, 48))
    backbone = AutoModel.from_pretrained(resolve_backbone("embedded:tiny/rlvr"))
    with pytest.raises(ValueError, match="adapter_config"):
        PeftModel.from_pretrained(backbone, str(out))


def test_interpolation_with_another_arm(run, tmp_path):
    folder, models = run
    first, mixed = tmp_path / "first", tmp_path / "mixed"
    assert main([str(folder), "--arm", "rlvr", "--out", str(first)]) == 0
    options = ["--interpolate", str(first), "--weight", "1", "--method", "linear"]
    assert main([str(folder), "--arm", "base", "--out", str(mixed), *options]) == 0
    loaded = _load(mixed)
    plain, _ = _differences(loaded, models["rlvr"])
    assert plain < 1e-5
    assert "linear interpolation" in (mixed / "README.md").read_text()


def test_an_arm_of_a_run_is_interpolated_with(run, tmp_path, capsys):
    folder, models = run
    out = tmp_path / "out"
    options = ["--interpolate", f"{folder}:rlvr", "--weight", "1", "--method", "linear"]
    assert main([str(folder), "--arm", "base", "--out", str(out), *options]) == 0
    plain, queries = _differences(_load(out), models["rlvr"])
    assert max(plain, float(queries.max())) < 1e-5
    other = tmp_path / "other"
    make_run(other, "arms.base=null", "arms.more={backbone: embedded:tiny/rlvr}")
    said = _answer(capsys, folder, "--arm", "base", "--interpolate", other)
    assert said.endswith(f"choose one: {other}:rlvr, {other}:more")
    assert "Did you mean 'rlvr'" in _answer(
        capsys, folder, "--arm", "base", "--interpolate", f"{folder}:rlv"
    )


EMPTY = (["", ""], ["", "a", " ", "\u2060", "\u2060a", "<|end|>", "a<|end|><|pad|>"])


def _check_empty(loaded, model, queries):
    for texts in EMPTY:
        expected = model.embed(texts, 48)
        for encode in (loaded.encode, loaded.encode_document):
            torch.testing.assert_close(encode(texts, convert_to_tensor=True), expected)
    expected = model.embed([(INSTRUCTION, "")], 48)
    found = loaded.encode([""], prompt=PROMPT, convert_to_tensor=True)
    torch.testing.assert_close(found, expected if queries else torch.zeros_like(expected))


@pytest.mark.parametrize(
    ("form", "pooling", "queries"),
    [
        ([], "mean", False),
        ([], "last", True),
        (["--standard"], "first", True),
        (["--exact"], "mean", True),
        (["--exact"], "last", True),
        (["--adapter-only"], "first", True),
    ],
)
def test_empty_texts_are_those_of_training(tmp_path, capsys, form, pooling, queries):
    backbone = make_backbone(tmp_path / "backbone", "llama")
    settings = ("arms.rlvr=null", f"arms.base.backbone={backbone}", f"model.pooling={pooling}")
    model = make_run(tmp_path / "run", *settings)["base"]
    out = tmp_path / "out"
    assert main([str(tmp_path / "run"), "--out", str(out), *form]) == 0
    assert ("empty queries differ" in capsys.readouterr().out) is not queries
    card = (out / "README.md").read_text()
    assert ("An instruction without a query" in card) is not queries
    assert "hf upload" not in card
    loaded = _load(out, trust_remote_code=True)
    _check_empty(loaded, model, queries)
    loaded.save(str(tmp_path / "again"))
    again = _load(tmp_path / "again", trust_remote_code=True)
    _check_empty(again, model, queries)
    assert max(_differences(again, model)[1]) < 1e-5


def test_a_mark_that_saving_would_leave_in_passages_is_not_made(run, tmp_path, capsys):
    """transformers reads qwen2 by rules of its own, which sentence-transformers then saves."""
    folder, models = run
    out = tmp_path / "out"
    assert main([str(folder), "--arm", "base", "--out", str(out)]) == 0
    assert "empty texts differ; --exact" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "An empty text is not encoded as in training" in card
    assert "Publish these files as they are" in card
    loaded = _load(out)
    loaded.save(str(tmp_path / "again"))
    plain, _ = _differences(_load(tmp_path / "again"), models["base"])
    assert plain < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_an_mteb_task_runs_on_it(run, tmp_path):
    """The saved prompt goes before its queries, so that the score is our module's."""
    mteb = pytest.importorskip("mteb", reason="the extra `eval` is not installed")
    from hrsa_lightning.data import read_retrieval_set
    from hrsa_lightning.functional.ranking import ranking_scores
    from tests.evaluate.local_task import LocalRetrieval
    from tests.evaluate.runs import write_pairs

    folder, models = run
    out = tmp_path / "out"
    assert main([str(folder), "--arm", "base", "--out", str(out)]) == 0
    loaded = _load(out)
    task = LocalRetrieval()
    task.pairs = write_pairs(tmp_path / "pairs.jsonl", 9)
    result = mteb.evaluate(loaded, task, cache=None, co2_tracker=False, show_progress_bar=False)
    data = read_retrieval_set([task.pairs])
    prompt = loaded.prompts["query"].removeprefix("Instruct: ").removesuffix("\nQuery: ")
    queries = models["base"].embed([(prompt, query[1]) for query in data.queries], 48)
    passages = models["base"].embed(data.corpus, 48)
    expected = ranking_scores(queries, passages, data.relevance, (10,))["ndcg@10"]
    assert result.task_results[0].get_score() == pytest.approx(expected, abs=1e-5)


def test_model_card_says_what_was_done_and_measured(run, tmp_path):
    folder, _ = run
    out = tmp_path / "out"
    assert main([str(folder), "--arm", "base", "--out", str(out), "--dtype", "bfloat16"]) == 0
    card = (out / "README.md").read_text()
    for text in ("embedded:tiny/base", "mrr@10", "retrieval.png", "LoRA, r 16", "name: quickstart"):
        assert text in card
    assert (out / "retrieval.png").read_bytes() == b"a picture"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def _answer(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    return said[0]


def test_mistakes_end_with_one_line_and_leave_nothing(run, tmp_path, capsys, monkeypatch):
    folder, _ = run
    out = tmp_path / "here" / "out"
    arm = ["--arm", "base", "--out", out]
    assert "no such folder" in _answer(capsys, tmp_path / "none")
    assert "config.yaml" in _answer(capsys, folder / "adapters")
    assert "choose one: base, rlvr" in _answer(capsys, folder)
    assert "Did you mean 'rlvr'" in _answer(capsys, folder, "--arm", "rlv")
    assert "exists" in _answer(capsys, folder, "--arm", "base", "--out", tmp_path)
    assert "from 0 to 1" in _answer(capsys, folder, *arm, "--weight", "2")
    both = ["--adapter-only", "--interpolate", folder]
    assert "not an adapter" in _answer(capsys, folder, *arm, *both)
    other = make_backbone(tmp_path / "other")
    assert "one architecture" in _answer(capsys, folder, *arm, "--interpolate", other)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    assert "GB free" in _answer(capsys, folder, *arm)
    assert not (tmp_path / "here").exists()


def test_runs_without_their_weights_are_refused(run, tmp_path, capsys):
    folder, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "summary.json").unlink()
    assert "not finished" in _answer(capsys, copy, "--arm", "base")
    shutil.copy(folder / "summary.json", copy)
    (copy / "adapters" / "base" / "adapter_model.safetensors").unlink()
    assert "no weights of arm 'base'" in _answer(capsys, copy, "--arm", "base")


def test_adapters_for_another_base_are_refused(tmp_path, capsys):
    make_run(tmp_path / "run", "arms.rlvr=null")
    other = make_backbone(tmp_path / "other")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("embedded:tiny/base", str(other)))
    said = _answer(capsys, tmp_path / "run", "--out", tmp_path / "out")
    assert "does not fit the backbone" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_differs_from_the_model_is_not_kept(run, tmp_path, capsys, monkeypatch):
    folder, _ = run
    monkeypatch.setattr(
        "hrsa_lightning.export.writer.largest_difference",
        lambda *arguments: (0.5, torch.zeros(1), torch.zeros(2)),
    )
    said = _answer(capsys, folder, "--arm", "base", "--out", tmp_path / "new" / "out")
    assert "gives other embeddings" in said
    assert not (tmp_path / "new").exists()


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100

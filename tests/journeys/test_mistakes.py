"""Mistakes in what a command is given: exit code 2, at most three lines, and nothing is written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from hrsa_lightning.cli import main
from tests.config.test_schema import BOMB
from tests.tiny import make_backbone

LONG = "1" + "0" * 22

VALUES = {
    # numbers without end, and out of their interval
    "optimizer.lr=.inf": "optimizer.lr: expected",
    "optimizer.weight_decay=.nan": "optimizer.weight_decay: expected",
    "optimizer.betas=[0.9, 1.5]": "optimizer.betas: expected",
    "optimizer.eps=-1": "optimizer.eps: expected",
    "loss.temperature=.inf": "loss.temperature: expected",
    "loss.hardness=.nan": "loss.hardness: expected",
    "loss.sigreg={weight: .inf}": "loss.sigreg.weight: expected",
    "loss.matryoshka=[8]; loss.matryoshka_weights=[.nan]": "loss.matryoshka_weights: expected",
    "model.lora.lora_dropout=.nan": "model.lora.lora_dropout: expected",
    "model.lora.lora_dropout=1.0": "model.lora.lora_dropout: expected",
    "model.lora.r=100000000": "model.lora.r: expected",
    "model.lora.target_modules=5": "model.lora.target_modules: expected",
    "model.lora.target_modules=[nothing]": "nothing",
    f"model.lora.target_modules={'a' * 5000}": "no LoRA as asked",
    "data.weights=[.inf]": "data.weights: expected",
    "data.num_workers=-1": "data.num_workers: expected",
    "data.num_workers=100000": "data.num_workers: expected",
    f"data.query_length={LONG}": "data.query_length: expected",
    f"data.passage_length={LONG}": "data.passage_length: expected",
    "max_tokens_per_chunk=-1": "max_tokens_per_chunk: expected",
    "activation_budget=-1": "activation_budget: expected",
    "seed=-1": "seed: expected",
    f"seed={2**63}": "seed: expected",
    # names
    "arms.keys={backbone: 'embedded:tiny/base'}": "arms.keys: expected",
    "arms.training={backbone: 'embedded:tiny/base'}": "arms.training: expected",
    "arms.__class__={backbone: 'embedded:tiny/base'}": "arms.__class__: expected",
    f"arms.{'a' * 300}={{backbone: 'embedded:tiny/base'}}": "arms.aaa",
    "name=../../x": "name: expected",
    "callbacks.similarity.name=../x": "callbacks.similarity",
    # paths
    "output_dir={folder}/file": "output_dir: expected a folder",
    "output_dir={folder}/file/below": "output_dir: expected a folder",
    'output_dir="a\\0b"': "output_dir: expected",
    "output_dir=${oc.env:HOME}": "output_dir: expected a value",
    # monitors
    "callbacks.similarity.layers=[5]": "layers",
    "callbacks.similarity.layers=[nothing.*]": "nothing.*",
    "callbacks.similarity.reference=arm:nobody": "nobody",
    "callbacks.similarity.reference={folder}/nowhere": "nowhere",
    "callbacks.similarity.arms=[nobody]": "nobody",
    "callbacks.similarity.log_spaced=-1": "log_spaced: expected",
    "callbacks.similarity._target_=wild.Thing": "_target_: cannot import 'wild.Thing'",
    "callbacks.similarity.probes={folder}/nowhere.txt": "nowhere.txt: no such file",
    "callbacks.retrieval.pairs={folder}/nowhere.jsonl": "nowhere.jsonl: no such file",
    **{
        f"callbacks.similarity.probes={{folder}}/{name}": name
        for name in ("latin.txt", "utf16.jsonl", "gzip.jsonl", "half.jsonl", "table.tsv", "pipe")
    },
    # pairs
    **{
        f"data.train=[{{folder}}/{name}]": name
        for name in ("latin.jsonl", "utf16.jsonl", "gzip.jsonl", "half.jsonl", "pipe")
    },
    # files of recipes
    "recipe={folder}/bomb.yaml": "too many entries",
    "recipe={folder}/deep.yaml": "nested too deeply",
    "recipe={folder}/twice.yaml": "the key 'seed' twice",
    f"recipe={'a' * 5000}": "no such recipe or file",
    # backbones
    "arms.other.backbone={folder}/empty": "model.safetensors: no safetensors file",
    "arms.other.backbone={folder}/truncated": "cut off",
    "arms.other.backbone={folder}/vocab_size": "config.json asks for",
    "arms.other.backbone={folder}/layers": "num_hidden_layers: expected",
    "arms.other.backbone={folder}/nan": "holds NaN or infinite weights",
    "arms.other.backbone={folder}/pad": "Padding_idx must be",
    "arms.other.backbone={folder}/tokens": "its tokenizer has ids up to 9999",
    "arms.other.backbone={folder}/pickle": "expected names of .safetensors",
}
"""What is set, apart by `; `, and a part of the answer."""


def _edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _spoil_weights(folder):
    path = folder / "nan" / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, path, {"format": "pt"})


def _write_backbones(folder):
    whole = make_backbone(folder / "empty", "llama", hidden=16, layers=2)
    for name in ("truncated", "vocab_size", "layers", "nan", "pad", "tokens", "pickle"):
        shutil.copytree(whole, folder / name)
    (folder / "empty/model.safetensors").write_bytes(b"")
    os.truncate(folder / "truncated/model.safetensors", 5000)
    _edit(folder / "vocab_size/config.json", vocab_size=1000)
    _edit(folder / "layers/config.json", num_hidden_layers=1)
    _edit(folder / "pad/config.json", pad_token_id=5000)
    _spoil_weights(folder)
    tokens = folder / "tokens/tokenizer.json"
    content = json.loads(tokens.read_text())
    content["model"]["vocab"]["<|more|>"] = 9999
    tokens.write_text(json.dumps(content))
    weights = folder / "pickle/model.safetensors"
    weights.rename(folder / "pickle/model-00001-of-00001.safetensors")
    index = {"weight_map": {"embed_tokens.weight": "pytorch_model.bin"}}
    (folder / "pickle/model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Files and folders that no command takes."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "file").write_text("")
    (folder / "wild.py").write_text("open('imported', 'w'); raise SystemExit(0)\n")
    pair = '{"query": "größer", "pos": ["a"], "text": "größer"}\n'
    for name in ("latin.jsonl", "latin.txt"):
        (folder / name).write_bytes(pair.encode("latin-1"))
    (folder / "utf16.jsonl").write_bytes((pair * 16).encode("utf-16"))
    (folder / "gzip.jsonl").write_bytes(b"\x1f\x8b\x08\x00" + b"0" * 100)
    (folder / "half.jsonl").write_text('{"query": "\\ud800", "pos": ["a"], "text": "\\ud800"}\n')
    (folder / "table.tsv").write_text("query\tpos\na\tb\n")
    os.mkfifo(folder / "pipe")
    (folder / "bomb.yaml").write_text(BOMB)
    (folder / "deep.yaml").write_text("a: " + "[" * 5000 + "]" * 5000)
    (folder / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    _write_backbones(folder)
    return folder


def _files(*folders):
    inside = [path for folder in folders for path in folder.rglob("*")]
    return sorted([*inside, *folders[0].parent.iterdir()])


def _arguments(setting, recipe, things):
    given = setting.replace("{folder}", str(things)).split("; ")
    return given if setting.startswith("recipe=") else [f"recipe={recipe}", *given]


def _check_answer(said, message):
    assert message in said
    assert len(said.splitlines()) <= 3, said
    assert len(said) < 1000, said


@pytest.mark.parametrize("setting", VALUES)
def test_training_answers_and_writes_nothing(
    setting, micro_recipe, things, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(things)
    before = _files(tmp_path, things, micro_recipe.parent)
    assert main(["train", *_arguments(setting, micro_recipe, things)]) == 2
    _check_answer(capsys.readouterr().err, VALUES[setting])
    assert _files(tmp_path, things, micro_recipe.parent) == before
    assert "wild" not in sys.modules


OF_RECIPES = ["seed=-1", "name=../../x", *(key for key in VALUES if key.startswith("recipe="))]


@pytest.mark.parametrize("setting", OF_RECIPES)
def test_all_commands_read_recipes_alike(setting, micro_recipe, things, tmp_path, monkeypatch):
    """In processes of their own, which import no torch for this."""
    monkeypatch.chdir(tmp_path)
    for command, *rest in (
        ["train"],
        ["train", "--print-config"],
        ["plan"],
        ["fetch", "--out", "out"],
    ):
        start = [sys.executable, "-m", f"hrsa_lightning.{command}", *rest]
        start += _arguments(setting, micro_recipe, things)
        done = subprocess.run(start, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, ""), done
        _check_answer(done.stderr, VALUES[setting])
    assert not list(tmp_path.iterdir())

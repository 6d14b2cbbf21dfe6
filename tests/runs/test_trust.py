"""Files of others: no pickle is read, no module of theirs imported, no file written elsewhere."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

from hrsa_lightning.compare import __main__ as compare
from hrsa_lightning.config import load_config
from hrsa_lightning.config.build import build_callbacks
from hrsa_lightning.data import read_pairs
from hrsa_lightning.errors import BackboneError, ConfigError, DataError
from hrsa_lightning.evaluate import __main__ as evaluate
from hrsa_lightning.export import __main__ as export
from hrsa_lightning.io.pretrained import check_weights
from hrsa_lightning.mine import __main__ as mine
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.models.tokenization import EmbeddingTokenizer
from hrsa_lightning.similarity.references import PretrainedReference
from tests.contrastive_runs import write_pairs
from tests.tiny import make_backbone, make_tokenizer


class Trap:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)

    def set(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(self))


@pytest.fixture
def trap(tmp_path):
    made = Trap(tmp_path / "trapped")
    yield made
    assert not made.path.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A backbone, pairs, and a folder of sentence-transformers around the same backbone."""
    folder = tmp_path_factory.mktemp("whole")
    make_backbone(folder / "backbone", hidden=16, layers=1)
    write_pairs(folder / "pairs.jsonl", 16)
    (folder / "pairs.jsonl.txt").write_text("".join(f"text {n}\n" for n in range(16)))
    shutil.copytree(folder / "backbone", folder / "packaged")
    _write_modules(folder / "packaged", "base.modules.transformer.Transformer", "")
    return folder


def _write_modules(folder, kind, path):
    entry = {"idx": 0, "name": "0", "path": path, "type": f"sentence_transformers.{kind}"}
    (folder / "modules.json").write_text(json.dumps([entry]))


COMMANDS = {
    "compare": lambda model, pairs, out: compare.main(
        [model, "embedded:tiny/base", "--texts", f"{pairs}.txt", "--out", out]
    ),
    "evaluate": lambda model, pairs, out: evaluate.main([model, "--pairs", pairs, "--out", out]),
    "mine": lambda model, pairs, out: mine.main([pairs, "--model", model, "--out", out]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("part", ["pytorch_model.bin", "2_Dense/pytorch_model.bin"])
def test_no_command_reads_pickled_weights(command, part, whole, trap, tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    model = Path(shutil.copytree(whole / "packaged", tmp_path / "model"))
    if "/" not in part:
        (model / "model.safetensors").unlink()
    trap.set(model / part)
    out = tmp_path / "out"
    assert COMMANDS[command](str(model), str(whole / "pairs.jsonl"), str(out)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{model}" in line
    assert "other" in line.partition("safetensors")[2], "formats are refused, not misread"
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:The Pandas builder is deprecated")
@pytest.mark.parametrize("name", ["pandas", "webdataset"])
def test_data_of_the_hub_are_no_pickles(name, trap, tmp_path):
    pytest.importorskip("datasets")
    trap.set(tmp_path / "pairs.pkl")
    with pytest.raises(DataError, match=r"expected files of parquet, .* on the hub, got"):
        read_pairs([{"path": f"hub:{name}", "files": str(tmp_path / "pairs.pkl")}])


def _name_a_pickle(folder, trap):
    names = {"embed_tokens.weight": "pytorch_model.bin"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    trap.set(folder / "pytorch_model.bin")


def test_a_reference_is_no_pickle(whole, trap, tmp_path):
    folder = Path(shutil.copytree(whole / "backbone", tmp_path / "reference"))
    (folder / "model.safetensors").unlink()
    _name_a_pickle(folder, trap)
    reference = PretrainedReference("reference", str(folder))
    opened = reference.opened(torch.nn.Linear(1, 1), torch.device("cpu"), "")
    with pytest.raises(ConfigError, match=r"weight_map: expected names of \.safetensors"), opened:
        pass


def test_an_index_on_the_hub_names_no_pickle(trap, tmp_path, monkeypatch):
    commit = "0" * 40
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    _name_a_pickle(snapshot, trap)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    check_weights("owner/other")
    with pytest.raises(BackboneError, match=r"weight_map: .* got 'pytorch_model\.bin'"):
        check_weights("owner/name")


@pytest.fixture
def wild(tmp_path, monkeypatch):
    """A module that could be imported, and is not."""
    (tmp_path / "wild.py").write_text("class Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "wild"
    assert "wild" not in sys.modules


def test_folders_of_models_import_nothing(whole, wild, tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    model = Path(shutil.copytree(whole / "packaged", tmp_path / "model"))
    (model / "modules.json").write_text(
        (model / "modules.json")
        .read_text()
        .replace("sentence_transformers.base.modules.transformer.Transformer", f"{wild}.Thing")
    )
    shutil.copy(tmp_path / "wild.py", model)
    for command, run in COMMANDS.items():
        out = str(tmp_path / command)
        assert run(str(model), str(whole / "pairs.jsonl"), out) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_adapters_import_nothing(whole, wild, tmp_path):
    trained = EmbeddingModel.from_pretrained(whole / "backbone", lora={"r": 2})
    trained.save_adapter(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    odd = {
        "megatron_config": {"a": 1},
        "megatron_core": wild,
        "auto_mapping": {"parent_library": wild},
    }
    path.write_text(json.dumps({**settings, **odd}))
    with pytest.raises(BackboneError, match="megatron_core"):
        EmbeddingModel.from_pretrained(whole / "backbone", adapter=tmp_path / "adapter")


def test_recipes_make_no_objects_within_arguments(wild):
    nested = f"callbacks.similarity.metrics=[{{_target_: {wild}.Thing}}]"
    with pytest.raises(ConfigError, match=r"^callbacks\.similarity"):
        build_callbacks(load_config("quickstart", [nested]))


def test_names_in_a_run_of_others_are_no_paths(tmp_path, capsys):
    run = tmp_path / "runs" / "x"
    (run / "adapters").mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "config.yaml").write_text(
        "defaults: quickstart\narms: {'../../out': {backbone: 'embedded:tiny/base'}}\n"
    )
    before = sorted(tmp_path.rglob("*"))
    for main in (export.main, evaluate.main):
        assert main([str(run), "--out", str(tmp_path / "out")]) == 2
        assert "arms.../../out: expected" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_templates_are_no_files(tmp_path):
    from hrsa_lightning.export.folder import write_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": "x", "../../outside": "y"}
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_tokenizer(tmp_path / "a" / "b", EmbeddingTokenizer(tokenizer), standalone=True)
    assert not list(tmp_path.rglob("*.jinja"))

"""Fetch a recipe from a hub of local folders, then train from the result with the network cut."""

import json
import socket

import pytest

from hrsa_lightning.config import load_config
from hrsa_lightning.fetch.__main__ import main
from hrsa_lightning.train.__main__ import main as train
from tests.hub import make_dataset, replace_hub
from tests.tiny import make_backbone

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")  # of `datasets` itself while it reads and writes

ROWS = [
    {"anchor": f"q{n}", "positive": f"a{n}", "negative_1": f"b{n}", "negative_2": f"c{n}", "n": n}
    for n in range(20)
]
RECIPE = """
name: small
arms:
  base: {backbone: owner/base}
  other: {backbone: owner/other, revision: feedbeef}
data:
  train:
    - path: hub:owner/triplets
      name: triplets
      files: triplet/train-*
      columns: {query: anchor, pos: positive, neg: negative_*}
      instruction: Find it
      filter: {n: {min: 4}}
    - path: hub:owner/triplets:other
      limit: 8
  batch_size: 4
  train_group_size: 3
loss: {alignment: {reference: owner/base}}
trainer: {accelerator: cpu, max_steps: 1, enable_progress_bar: false}
callbacks:
  similarity:
    preset: realignment
    probes:
      few: {path: "hub:owner/triplets:other", text: "{anchor} {positive}", label: n, limit: 12}
    heatmap_every_n_evaluations: 0
    null: 0
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    files = {"triplet": "triplet/train-00000-of-00001.parquet", "other": "other/train.parquet"}
    make_dataset(folder / "owner" / "triplets", ROWS, files)
    for name in ("base", "other"):
        make_backbone(folder / "owner" / name)
    replace_hub(monkeypatch, folder)
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return folder


def _cut(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_fetch_then_train_with_the_network_cut(hub, tmp_path, monkeypatch, capsys):
    assert main(["recipe=small.yaml", "--out", "got"]) == 0
    printed = capsys.readouterr().out
    assert (
        "triplets at 0123456789: 16 pairs -> data/triplets.jsonl (license: apache-2.0)" in printed
    )
    record = json.loads((tmp_path / "got" / "fetched.json").read_text())
    assert record["data/triplets.jsonl"]["pairs"] == 16
    assert record["data/triplets.jsonl"]["columns"] == [
        "query anchor, pos positive, neg negative_1 ... negative_2"
    ]
    assert record["models/owner--other@feedbeef"]["revision"] == "feedbeef"
    first = json.loads((tmp_path / "got" / "data" / "triplets.jsonl").read_text().splitlines()[0])
    assert first == {"query": ["Find it", "q4"], "pos": ["a4"], "neg": ["b4", "c4"]}
    line = (tmp_path / "got" / "probes" / "similarity.few.jsonl").read_text().splitlines()[0]
    assert json.loads(line) == {"text": "q0 a0", "label": "0"}
    config = load_config("got/recipe.yaml")
    assert list(config.callbacks["similarity"]["probes"]["few"]) == ["path"]
    assert [entry["rows"] for entry in config.data.train] == [16, 8]
    assert config.arms["other"].revision is None

    (hub / "owner").rename(hub / "gone")  # what was fetched is not asked for again
    assert main(["recipe=small.yaml", "--out", "got", "--root", "/there"]) == 0
    moved = load_config("got/recipe.yaml")
    assert moved.data.train[0]["path"] == "/there/data/triplets.jsonl"
    assert moved.arms["base"].backbone == "/there/models/owner--base"
    assert main(["recipe=small.yaml", "--out", "got"]) == 0

    _cut(monkeypatch)
    assert train([f"recipe={tmp_path}/got/recipe.yaml", "output_dir=runs"]) == 0
    assert "triplets: 16 pairs, query query, pos pos, neg neg" in capsys.readouterr().out


def test_changed_requests_are_fetched_anew_and_mistakes_are_a_line(hub, tmp_path, capsys):
    assert main(["recipe=small.yaml", "--out", "got", "data.limit=3", "arms.other=null"]) == 0
    assert main(["recipe=small.yaml", "--out", "got", "data.limit=5", "arms.other=null"]) == 0
    assert len((tmp_path / "got" / "data" / "triplets.jsonl").read_text().splitlines()) == 5
    (hub / "owner" / "other" / "model.safetensors").unlink()
    revision = "arms.other.revision=/../../../x"
    assert main(["recipe=small.yaml", "--out", "got", revision]) == 2
    assert "has no *.safetensors file" in capsys.readouterr().err
    models = sorted(path.name for path in (tmp_path / "got" / "models").iterdir())
    assert models == ["owner--base", "owner--other@_.._.._.._"]
    (tmp_path / "file").write_text("")
    assert main(["recipe=small.yaml", "--out", "file"]) == 2
    assert "--out: expected a folder, got a file" in capsys.readouterr().err

"""The train command as a user runs it: in a process of its own, on the shipped tiny backbones."""

import json
import math

import pytest
from transformers import AutoModel

from hrsa_lightning.models.paths import resolve_backbone
from hrsa_lightning.train.__main__ import main
from tests.histories import read_tags

SMALL = [
    "recipe=quickstart",
    "arms.sft=null",
    "arms.base_seed2=null",
    "data.batch_size=16",
    "trainer.enable_progress_bar=false",
]


def _losses(run, arm):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / arm))
    events.Reload()
    return [event.value for event in events.Scalars("train/loss")]


@pytest.fixture
def run(quickstart):
    (folder,) = quickstart.glob("runs/quickstart/*")
    return folder


def test_quickstart_shows_tables_pictures_and_the_tensorboard_line(quickstart, run):
    shown = (quickstart / "screen.txt").read_text()
    for text in ("rlvr vs base", "sft vs base", "base_seed2 vs base", "mrr@10", "knn_overlap_10"):
        assert text in shown
    control = "base_seed2 is base with its own order of batches, drawn negatives and adapters"
    assert control in " ".join(shown.split())
    assert f"tensorboard --logdir {run.parent.relative_to(quickstart)}" in shown
    for picture in ("similarity.png", "retrieval.png"):
        assert f"curves:   {(run / picture).relative_to(quickstart)}" in shown
        assert (run / picture).stat().st_size > 10_000


def test_run_folder_holds_what_it_should(run):
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"]
    for name in ("config.yaml", "summary.json", "similarity.jsonl", "retrieval.jsonl"):
        assert (run / name).is_file(), name
    records = read_tags(run / "similarity.jsonl")
    assert [record["step"] for record in records] == [0, 2]
    layers = {tag.rsplit("/", 1)[1] for tag in records[0]["values"]} - {"seconds"}
    assert layers == {"layer_0", "layer_1", "layer_2", "layer_3", "output", "mean_over_layers"}
    assert records[0]["values"]["similarity/cka/base_seed2_vs_base/output"] == pytest.approx(1.0)
    assert all(math.isfinite(loss) for loss in _losses(run, "rlvr"))


def test_adapters_are_in_pefts_own_format(run):
    from peft import PeftModel

    backbone = AutoModel.from_pretrained(resolve_backbone("embedded:tiny/rlvr"))
    model = PeftModel.from_pretrained(backbone, str(run / "adapters" / "rlvr"))
    loaded = {
        name for name, p in model.named_parameters() if "lora_B" in name and p.abs().sum() > 0
    }
    assert loaded


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("arms.base.backbone=./no/such/folder", "arms.base.backbone: backbone './no/such/folder'"),
        ("arms.base.backbone=embedded:tiny/bse", "expected one of: embedded:tiny/base"),
        ("data.train=[missing.jsonl]", "missing.jsonl"),
        ("data.batch_size=1000000", "1000000"),
        ("callbacks.similarity.layers=[nothing.*]", "nothing.*"),
        ("callbacks.retrieval.pairs=missing.jsonl", "missing.jsonl"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(tmp_path, capsys, setting, message):
    assert main([*SMALL, setting, f"output_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) <= 2
    assert not list(tmp_path.glob("*/*/checkpoints/*"))

"""The train command as a user runs it: in a process of its own, on the shipped tiny backbones."""

import json
import math
import subprocess
import sys
from pathlib import Path

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


def _folder(output_dir):
    (folder,) = Path(output_dir, "quickstart").iterdir()
    return folder


def _losses(folder, arm):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / arm))
    events.Reload()
    return [event.value for event in events.Scalars("train/loss")]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The quickstart as it is shipped, two steps of it and a part of the held-out queries."""
    output = tmp_path_factory.mktemp("whole")
    short = ["trainer.max_steps=2", "callbacks.retrieval.limit=100"]
    command = [sys.executable, "-m", "hrsa_lightning.train", "recipe=quickstart", *short]
    done = subprocess.run(
        [*command, f"output_dir={output}"], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return _folder(output), done


def test_quickstart_shows_tables_pictures_and_the_tensorboard_line(whole_run):
    folder, done = whole_run
    for text in ("rlvr vs base", "sft vs base", "base_seed2 vs base", "mrr@10", "knn_overlap_10"):
        assert text in done.stdout
    control = "base_seed2 is base with its own order of batches, drawn negatives and adapters"
    assert control in " ".join(done.stdout.split())
    assert f"tensorboard --logdir {folder.parent}" in done.stdout
    for picture in ("similarity.png", "retrieval.png"):
        assert f"curves:   {folder / picture}" in done.stdout
        assert (folder / picture).stat().st_size > 10_000


def test_run_folder_holds_what_it_should(whole_run):
    folder, _ = whole_run
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"]
    for name in ("config.yaml", "summary.json", "similarity.jsonl", "retrieval.jsonl"):
        assert (folder / name).is_file(), name
    records = read_tags(folder / "similarity.jsonl")
    assert [record["step"] for record in records] == [0, 2]
    layers = {tag.rsplit("/", 1)[1] for tag in records[0]["values"]} - {"seconds"}
    assert layers == {"layer_0", "layer_1", "layer_2", "layer_3", "output", "mean_over_layers"}
    assert records[0]["values"]["similarity/cka/base_seed2_vs_base/output"] == pytest.approx(1.0)
    assert all(math.isfinite(loss) for loss in _losses(folder, "rlvr"))


def test_adapters_are_in_pefts_own_format(whole_run):
    from peft import PeftModel

    folder, _ = whole_run
    backbone = AutoModel.from_pretrained(resolve_backbone("embedded:tiny/rlvr"))
    model = PeftModel.from_pretrained(backbone, str(folder / "adapters" / "rlvr"))
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

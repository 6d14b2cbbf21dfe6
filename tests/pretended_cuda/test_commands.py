"""Whole commands on pretended devices: everything stays on its device, and nothing waits for it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contrastive_runs import WORDS
from tests.evaluate.runs import write_pairs

DEVICES = ("auto", "cuda:1")
ROOT = Path(__file__).parents[2]
ARMS = ["recipe=quickstart", "arms.sft=null", "arms.base_seed2=null", "data.batch_size=8"]
SMALL = [
    *ARMS,
    "trainer.accelerator=cuda",
    "trainer.enable_progress_bar=false",
    "callbacks.similarity.every_n_train_steps=2",
    "callbacks.similarity.probes=texts.jsonl",
    'callbacks.similarity.layers=["**.layers.1",output]',
    "callbacks.similarity.heatmap_every_n_evaluations=100",
    "callbacks.similarity.null=19",
    "callbacks.similarity.on_error=raise",
    "callbacks.retrieval.on_error=raise",
    "callbacks.retrieval.limit=20",
]
WATCHED = [*SMALL, "trainer.max_steps=2", "checkpoint.every_n_train_steps=1"]
SOME_METRICS = "callbacks.similarity.metrics=[cka,knn_overlap_10]"
# Several chunks, of which none keeps its graph; the screen and the log are not looked at.
HOT = [
    *ARMS,
    "trainer.accelerator=cuda",
    "callbacks.similarity=null",
    "callbacks.retrieval=null",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=100",
    "loss.sigreg={}",
    "max_tokens_per_chunk=400",
]
TRAIN = {
    "bf16-mixed": [*WATCHED, SOME_METRICS, "trainer.precision=bf16-mixed", "loss.sigreg={}"],
    "bf16-true": [*WATCHED, SOME_METRICS, "trainer.precision=bf16-true", "loss.sigreg={}"],
    "16-mixed": [*WATCHED, SOME_METRICS, "trainer.precision=16-mixed", "loss.sigreg={}"],
    "all weights": [*WATCHED, SOME_METRICS, "model.lora=null", "activation_budget=auto"],
    "deterministic": [*WATCHED, "trainer.deterministic=true", "loss.name=debiased"],
    "hot loop in bf16-mixed": [*HOT, "activation_budget=100000", "trainer.precision=bf16-mixed"],
    "hot loop in 16-mixed": [*HOT, "trainer.precision=16-mixed"],
    "hot loop of one arm": [*HOT, "arms.rlvr=null", "activation_budget=0"],
}


def start(folder, scenarios, rank=None):
    """A process that runs scenarios; two ranks meet as under torchrun."""
    (folder / "scenarios.json").write_text(json.dumps(scenarios))
    texts = [{"text": f"{one} {other}", "label": one[0]} for one in WORDS for other in WORDS[:5]]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    write_pairs(folder / "pairs.jsonl")
    environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))
    if rank is not None:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        meeting = {"MASTER_ADDR": "127.0.0.1", "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "x"}
        environment |= {name: str(value) for name, value in {**ranks, **meeting}.items()}
    results = folder / f"results_{rank}.json"
    command = [sys.executable, "-m", "tests.pretended_cuda.commands", "scenarios.json", results]
    log = (folder / f"log_{rank}.txt").open("w")
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
    )
    return process, results, log


def finish(process, results, log, timeout=900):
    try:
        process.wait(timeout)
    finally:
        process.kill()
        process.wait()
        log.close()
    assert results.is_file(), Path(log.name).read_text()[-3000:]
    return json.loads(results.read_text())


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """What each command did with one device, or with the second of two."""
    models = ["embedded:tiny/base", "embedded:tiny/rlvr"]
    commands = {name: (1, "train", *settings) for name, settings in TRAIN.items()}
    commands["second of two"] = (2, "train", *WATCHED, SOME_METRICS, "trainer.devices=[1]")
    for device in DEVICES:
        on_it = [] if device == "auto" else ["--device", device]
        texts = ["--texts", "texts.jsonl", "--null", "19"]
        commands[f"compare on {device}"] = (2, "compare", *models, *texts, *on_it)
        pairs = ["--pairs", "pairs.jsonl"]
        commands[f"evaluate on {device}"] = (2, "evaluate", *models, *pairs, *on_it)
    scenarios = {}
    for name, (devices, command, *arguments) in commands.items():
        out = [f"output_dir={name}"] if command == "train" else ["--out", name]
        scenarios[name] = {"command": command, "arguments": [*arguments, *out]}
        scenarios[name] |= {"devices": devices, "nccl": False}
    return finish(*start(tmp_path_factory.mktemp("one_device"), scenarios))


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in TRAIN if not name.startswith("hot")),
        "second of two",
        *(f"{command} on {device}" for command in ("compare", "evaluate") for device in DEVICES),
    ],
)
def test_a_command_on_one_device(one_device, name):
    found = one_device[name]
    assert (found["code"], found["error"]) == (0, "")
    if "second" in name:
        assert set(found["loaded_for"]) == {"cuda:1"}


OVERFLOW = "item: lightning/pytorch/plugins/precision/amp.py:optimizer_step"
"""Scaled gradients in float16 may be infinite, and then the optimizer does nothing."""


@pytest.mark.parametrize("name", [name for name in TRAIN if name.startswith("hot")])
def test_nothing_in_a_training_step_waits_for_the_device(one_device, name):
    found = one_device[name]
    assert (found["code"], found["error"]) == (0, "")
    waits = {f"{what}: {place}" for what, place, _ in found["waits"]}
    assert waits == ({OVERFLOW} if name.endswith(" 16-mixed") else set())


def test_two_ranks_talk_over_nccl_alone(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    settings = [*WATCHED, "trainer.devices=2", SOME_METRICS, "output_dir=runs"]
    scenario = {"command": "train", "arguments": settings, "devices": 2, "nccl": True}
    for rank in [start(tmp_path, {"ddp": scenario}, rank) for rank in range(2)]:
        found = finish(*rank)["ddp"]
        assert (found["code"], found["error"]) == (0, "")

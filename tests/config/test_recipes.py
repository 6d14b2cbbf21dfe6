"""Every shipped recipe and preset loads, its parts build, and it trains on local backbones."""

import json
import re
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from hrsa_lightning.config import describe_recipes, load_config, read_yaml
from hrsa_lightning.config.build import build_callbacks, instantiate
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.plan.estimate import estimate, workload_of
from hrsa_lightning.resources import resolve_path, resource_files
from hrsa_lightning.train.__main__ import main as train
from tests.contrastive_runs import write_pairs
from tests.histories import read_tags
from tests.tiny import make_backbone

RECIPES = resource_files("recipes")
PRESETS = resource_files("callbacks")
SAME_AS_PAIRED = ["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-0.6b"]
# The first solo run has no other run's trace to be compared with.
LAUNCHED_WITH = {"solo": ["callbacks.other=null"]}
FOR_HUB_MODELS = [name for name in RECIPES if not name.startswith("quickstart")]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_builds_its_callbacks_and_says_how_to_launch(name):
    config = load_config(name, LAUNCHED_WITH.get(name, []))
    assert config.name == name
    assert 10 < len(config.description) < 100
    assert build_callbacks(config)
    first = RECIPES[name].read_text().splitlines()[0]
    assert re.match(rf"# .*-m hrsa_lightning\.train recipe={re.escape(name)}(\s|$)", first)


@pytest.mark.parametrize("name", FOR_HUB_MODELS)
def test_recipes_share_the_papers_parameters(name):
    config = load_config(name)
    assert (config.data.batch_size, config.data.train_group_size) == (4096, 4)
    assert (config.data.query_length, config.data.passage_length) == (512, 512)
    assert config.loss.temperature == 0.02
    assert config.optimizer == load_config("contrastive").optimizer
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-5, 0.05)
    assert (config.optimizer.warmup_ratio, config.optimizer.schedule) == (0.03, "cosine")
    assert load_config(name, ["model.lora=null"]).model.lora is None


@pytest.mark.parametrize("name", FOR_HUB_MODELS)
def test_memory_in_the_header_is_what_plan_says(name):
    header = RECIPES[name].read_text().partition("\nname:")[0]
    stated = int(re.search(r"# Needs: +(\d+) GB on one GPU", header)[1])
    assert f"python -m hrsa_lightning.plan recipe={name} trainer.devices=1" in header
    own = ["arms.rlvr.backbone=Qwen/Qwen3-0.6B"] if name == "qwen3-0.6b" else []
    config = load_config(name, ["trainer.devices=1", *own])
    plan = estimate(config, workload_of(config))
    assert stated - 1.5 < plan.total_memory / 1e9 < stated


@pytest.mark.parametrize("name", RECIPES)
def test_half_of_the_probes_are_more_than_the_features(name):
    config = load_config(name)
    path = Path(resolve_path(config.callbacks["similarity"]["probes"]))
    fitted = len(path.read_text().splitlines()) // 2
    for arm in config.arms.values():
        size = re.search(r"(0\.5|0\.6|1\.5)b", arm.backbone, re.IGNORECASE)
        width = 1536 if size is None else {"0.5": 896, "0.6": 1024, "1.5": 1536}[size[1]]
        assert fitted > (128 if arm.backbone.startswith("embedded:") else width)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A backbone laid out as the hub's cache has it: a snapshot of links to blobs."""
    root = tmp_path_factory.mktemp("hub") / "models--someone--tiny"
    blobs, snapshot = root / "blobs", root / "snapshots" / "0123abcd"
    make_backbone(blobs, hidden=16, layers=1)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    return snapshot


@pytest.fixture(scope="module")
def small(tmp_path_factory, hub):
    """Overrides that make any recipe small; the keys that make it what it is stay."""
    folder = tmp_path_factory.mktemp("small")
    pairs = write_pairs(folder / "pairs.jsonl", 32)
    lines = Path(resolve_path("embedded:tiny/probes.jsonl")).read_text().splitlines()
    (folder / "probes.jsonl").write_text("\n".join(lines[::16]) + "\n")
    return [
        f"data.train=[{pairs}]",
        "data.batch_size=8",
        "data.train_group_size=3",
        "data.num_workers=0",
        "max_tokens_per_chunk=128",
        "activation_budget=10000",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "trainer.max_steps=2",
        "trainer.enable_progress_bar=false",
        f"callbacks.similarity.probes={folder / 'probes.jsonl'}",
        f"callbacks.retrieval.pairs={pairs}",
    ]


def _small_run(name, small, hub, output, *settings):
    config = load_config(name)
    arms = [f"arms.{arm}.backbone={hub}" for arm in config.arms]
    assert train([f"recipe={name}", *small, *arms, f"output_dir={output}", *settings]) == 0
    return max((output / name).iterdir(), key=lambda folder: folder.name)


@pytest.mark.parametrize("name", SAME_AS_PAIRED)
def test_pairs_differ_in_their_backbones_alone(name):
    paired, other = load_config("paired"), load_config(name)
    for field in ("name", "description", "arms"):
        setattr(other, field, getattr(paired, field))
    assert other == paired


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SAME_AS_PAIRED else [])
        for name in FOR_HUB_MODELS
        if name != "solo"
    ],
)
def test_recipe_trains_two_steps_on_local_backbones(name, small, hub, tmp_path):
    folder = _small_run(name, small, hub, tmp_path)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    arms = list(load_config(name).arms)
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == sorted(arms)
    values = read_tags(folder / "similarity.jsonl")[-1]["values"]
    compared = {tag.split("/")[2] for tag in values if tag.startswith("similarity/cka/")}
    expected = {f"{arm}_vs_initial" for arm in arms} | {f"{arm}_vs_base" for arm in arms[1:]}
    assert expected <= compared


@pytest.mark.filterwarnings("ignore")
def test_solo_run_is_compared_with_the_trace_of_another(small, hub, tmp_path):
    probes = next(setting for setting in small if "similarity.probes" in setting).split("=")[1]
    shared = [f"callbacks.recorder.probes={probes}", "callbacks.recorder.every_n_train_steps=1"]
    first = _small_run("solo", small, hub, tmp_path, "callbacks.other=null", *shared)
    second = _small_run(
        "solo",
        small,
        hub,
        tmp_path / "other",
        *shared,
        "arms.model.seed=5",
        f"callbacks.other.probes={probes}",
        f"callbacks.other.reference=trace:{first / 'trace'}",
        "callbacks.other.every_n_train_steps=1",
    )
    records = read_tags(second / "against_other.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2]
    cka = [
        value
        for record in records
        for tag, value in record["values"].items()
        if "/cka/" in tag and tag.endswith("/output")
    ]
    assert cka[0] == pytest.approx(1.0)  # the same backbone, before either has trained
    assert len(cka) == 3


def test_a_checkpoint_of_your_own_has_to_be_named(small, capsys):
    assert train(["recipe=qwen3-0.6b", *small]) == 2
    assert "arms.rlvr.backbone" in capsys.readouterr().err


@pytest.mark.parametrize("name", PRESETS)
def test_preset_names_only_what_its_class_takes(name):
    problem = ""
    try:
        instantiate(read_yaml(PRESETS[name]), f"callbacks.{name}", Callback)
    except ConfigError as error:  # a preset may leave open what only its user knows
        problem = str(error)
    assert "_target_" not in problem
    assert "unknown key" not in problem


def test_recipes_describe_themselves():
    assert set(describe_recipes()) == set(RECIPES)
    assert all(describe_recipes().values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.similarity.every_n_train_step=7", "Did you mean 'every_n_train_steps'"),
        ("callbacks.similarity._target_=os.system", "expected a subclass of Callback, got 'os."),
        ("callbacks.similarity._target_=no.such.Thing", "cannot import 'no.such.Thing'"),
        ("callbacks.similarity._target_=torch.nn.Linear", "expected a subclass of Callback"),
    ],
)
def test_mistakes_in_callbacks_name_the_key(override, message):
    config = load_config("quickstart", [override])
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        build_callbacks(config)
    assert str(caught.value).startswith(("callbacks.similarity", "unknown key 'callbacks.simil"))

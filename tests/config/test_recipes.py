"""Every shipped recipe and preset loads, its parts build, and it trains on local backbones."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from hrsa_lightning.config import describe_recipes, load_config, read_yaml
from hrsa_lightning.config.build import build_callbacks, instantiate
from hrsa_lightning.errors import ConfigError
from hrsa_lightning.io.resources import resolve_path, resource_files
from hrsa_lightning.plan.estimate import estimate, workload_of
from hrsa_lightning.train.__main__ import main as train
from tests.contrastive_runs import write_pairs
from tests.histories import read_tags
from tests.hub import make_dataset, replace_hub
from tests.tiny import make_backbone

RECIPES = resource_files("recipes")
PRESETS = resource_files("callbacks")
datasets = pytest.importorskip("datasets")
SAME_AS_PAIRED = ["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-0.6b", "qwen3-4b-psr"]
# The first solo run has no other run's trace to be compared with.
LAUNCHED_WITH = {"solo": ["callbacks.other=null"]}
FOR_HUB_MODELS = [name for name in RECIPES if not name.startswith("quickstart")]
ARCHITECTURES = {"olmo2-1b": "olmo2", "smollm2-135m": "llama", "qwen3-0.6b": "qwen3"}
"""Of the recipes whose backbones are no Qwen2."""

QUICK = ["public", "paper", *ARCHITECTURES]
"""What each architecture and the paper's settings need; the others differ in their arms alone."""


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_loads_builds_its_callbacks_and_says_how_to_launch(name):
    config = load_config(name, LAUNCHED_WITH.get(name, []))
    assert config.name == name
    assert 10 < len(config.description) < 100
    assert build_callbacks(config)
    first = RECIPES[name].read_text().splitlines()[0]
    assert re.match(rf"# .*-m hrsa_lightning\.train recipe={re.escape(name)}(\s|$)", first)


@pytest.mark.parametrize("name", [name for name in FOR_HUB_MODELS if name != "smollm2-135m"])
def test_recipes_share_the_papers_parameters(name):
    config = load_config(name)
    assert (config.data.batch_size, config.data.train_group_size) == (2048, 4)
    assert (config.data.query_length, config.data.passage_length) == (512, 512)
    assert config.loss.temperature == 0.02
    assert config.optimizer == load_config("contrastive").optimizer
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-5, 0.05)
    assert (config.optimizer.warmup_ratio, config.optimizer.schedule) == (0.03, "cosine")
    assert load_config(name, ["model.lora=null"]).model.lora is None


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in FOR_HUB_MODELS
    ],
)
def test_memory_in_the_header_is_what_plan_says(name):
    header = RECIPES[name].read_text().partition("\nname:")[0]
    stated = int(re.search(r"# Needs: +(\d+) GB on one GPU", header)[1])
    assert f"python -m hrsa_lightning.plan recipe={name} trainer.devices=1" in header
    config = load_config(name, ["trainer.devices=1"])
    plan = estimate(config, workload_of(config))
    assert stated - 1.5 < plan.total_memory / 1e9 < stated


@pytest.mark.parametrize("name", RECIPES)
def test_half_of_the_probes_are_more_than_the_features(name):
    config = load_config(name)
    monitor = config.callbacks["similarity"]
    path = Path(resolve_path(monitor["probes"]))
    probes = len(path.read_text().splitlines())
    if (batches := monitor.get("limit_probe_batches")) is not None:
        probes = min(probes, batches * monitor["batch_size"])
    fitted = probes // 2
    for arm in config.arms.values():
        size = re.search(r"(0\.5|0\.6|1\.5|135|1)[bm]", arm.backbone, re.IGNORECASE)
        widths = {"0.5": 896, "0.6": 1024, "1.5": 1536, "135": 576, "1": 2047}
        width = 1536 if size is None else widths[size[1]]  # OLMo 2's 2,048 want a larger file
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


@pytest.fixture(scope="module")
def public_data(tmp_path_factory):
    """The public sets in small, in files and columns as documented."""
    folder = tmp_path_factory.mktemp("datasets")
    rows = [{"query": f"q{n}", "positive": f"a{n}", "negative": f"b{n}"} for n in range(3)]
    triplets = [
        {"anchor": row["query"], "positive": row["positive"], "negative": row["negative"]}
        for row in rows
    ]
    seven = [
        {
            **{k: row[k] for k in ("anchor", "positive")},
            **{f"negative_{i}": "c" for i in range(1, 8)},
        }
        for row in triplets
    ]
    own, part = folder / "sentence-transformers", "train-00000-of-00001.parquet"
    make_dataset(
        own / "nli-for-simcse",
        seven,
        {"triplet-7": f"triplet-7/{part}", "triplet": f"triplet/{part}"},
    )
    for name in ("dureader", "t2ranking"):
        make_dataset(own / name, triplets, {"triplet": f"triplet/{part}"})
    languages = {f"{language}-triplet": f"{language}-triplet/{part}" for language in ("ar", "en")}
    make_dataset(own / "mr-tydi", triplets, languages)
    names = ("fever", "hotpot_qa", "msmarco_passage", "nq", "quora_duplicate", "squad", "triviaqa")
    make_dataset(folder / "BeastyZ" / "E5-R", rows, {name: f"{name}/{part}" for name in names})
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A function that makes one tiny backbone of an architecture, once."""
    folder = tmp_path_factory.mktemp("backbones")

    def make(family):
        if not (folder / family).exists():
            make_backbone(folder / family, family=family, hidden=16, layers=1)
        return folder / family

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in FOR_HUB_MODELS
    ],
)
def test_recipe_trains_with_nothing_prepared(
    name, small, tiny, public_data, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    """The hub is local folders; arms are random models of the right architecture."""
    cache = tmp_path_factory.getbasetemp() / "datasets-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    replace_hub(monkeypatch, public_data)
    backbone = tiny(ARCHITECTURES.get(name, "qwen2"))
    arms = list(load_config(name).arms)
    settings = [setting for setting in small if not setting.startswith("data.train=")]
    settings += [f"arms.{arm}.backbone={backbone}" for arm in arms]
    settings += ["trainer.max_steps=1", "data.batch_size=2", "data.train_group_size=2"]
    settings += ["callbacks.similarity.null=0", "callbacks.retrieval=null"]
    settings += LAUNCHED_WITH.get(name, [])
    if name == "olmo2-1b":  # five arms have fifteen comparisons, which all go one way
        arms = ["base", "sft", "dpo"]
        settings += ["arms.rlvr=null", "arms.instruct=null"]
        settings += ["callbacks.similarity.reference=[initial, arm:base, arm:sft]"]
    assert train([f"recipe={name}", *settings, f"output_dir={tmp_path}"]) == 0
    folder = max((tmp_path / name).iterdir(), key=lambda folder: folder.name)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 1
    printed = capsys.readouterr().out
    if len(arms) > 1:
        assert "tokenizers: all arms read texts alike, without a BOS token" in printed
    if name != "smollm2-135m":  # on the embedded pairs
        assert "nli: 3 pairs, query anchor, pos positive, neg negative_1 ... negative_7" in printed
        assert "mr-tydi: 6 pairs, query anchor, pos positive, neg negative" in printed
        assert "msmarco_passage: 3 pairs, query query, pos positive, neg negative" in printed
    values = read_tags(folder / "similarity.jsonl")[-1]["values"]
    compared = {tag.split("/")[2] for tag in values if tag.startswith("similarity/cka/")}
    assert {f"{arm}_vs_initial" for arm in arms} <= compared
    if name == "olmo2-1b":
        assert {f"{arm}_vs_{before}" for before, arm in pairwise(arms)} <= compared
        references = load_config(name).callbacks["similarity"]["reference"]
        assert [f"arm:{arm}" for arm in list(load_config(name).arms)[:-1]] == references[1:]


@pytest.mark.filterwarnings("ignore")
def test_solo_run_is_compared_with_the_trace_of_another(small, hub, tmp_path, capsys):
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
    screen = capsys.readouterr().out
    for text in ("against_other at output, before → after", "against_other.png", "report.html"):
        assert text in screen
    assert (second / "report" / "report.html").is_file()
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
    assert train(["recipe=qwen3-4b-psr", *small]) == 2
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

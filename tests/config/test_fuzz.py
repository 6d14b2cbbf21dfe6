"""Every key of a recipe, and every argument of its callbacks, with hostile values.

Each is answered with an error of at most three lines before any model loads, or the run ends well;
nothing else. Keys come from the schema and from the signatures of the callbacks.
"""

import random
import subprocess
import sys
import time
import warnings
from collections import Counter

import pytest

from hrsa_lightning.callbacks import RepresentationRecorder, RetrievalMonitor, SimilarityMonitor
from hrsa_lightning.config import load_config
from hrsa_lightning.config.build import arguments_of, build_callbacks, build_trainer
from hrsa_lightning.errors import HRSAError
from hrsa_lightning.io.resources import resolve_path
from hrsa_lightning.train.__main__ import _checked_pairs
from hrsa_lightning.train.__main__ import main as train
from tests.config.test_schema import KEYS
from tests.contrastive_runs import write_pairs
from tests.tiny import make_backbone

FEW = ["null", ".nan", "-1", "1" + "0" * 22, "[5]", "{a: 1}", '"a\\0b"']
MANY = [
    *("../../x", "''", "true", "0", "0.5", "1e999", "-.inf", "1.0e-300", "5", "2.5", "[]", "[[]]"),
    *("[.nan]", "{}", "auto", "no", "12:00:00:00", "0123456", "~", "~/x", "/", ".", "a b", "größe"),
    *(
        "${oc.env:HOME}",
        "???",
        "[1, 2, 3]",
        "[a, b]",
        "{_target_: os.system}",
        "$(reboot)",
        "hub:x",
    ),
    *('"\\ud800"', "a" * 300, "a" * 5000, "$\\frac{$", "<b>", "=1+1", "../x", "a/b", "embedded:x"),
]
CALLBACKS = {
    "similarity": SimilarityMonitor,
    "retrieval": RetrievalMonitor,
    "recorder": RepresentationRecorder,
}
ARGUMENTS = [
    f"callbacks.{name}.{argument}"
    for name, cls in CALLBACKS.items()
    for argument in arguments_of(cls)[0]
]
EVERY = [*KEYS, "arms", "callbacks", "model.lora", "loss", "trainer.strategy._target_", *ARGUMENTS]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe whose run takes two steps of a microscopic backbone."""
    folder = tmp_path_factory.mktemp("fuzz")
    backbone = make_backbone(folder / "backbone", hidden=16, layers=1)
    pairs = write_pairs(folder / "pairs.jsonl", 16)
    (folder / "probes.txt").write_text("".join(f"probe {n} of {n % 5}\n" for n in range(12)))
    rhythm = "arms: arms, every_n_train_steps: 1"
    probes = f"probes: {folder / 'probes.txt'}"
    (folder / "small.yaml").write_text(
        f"output_dir: {folder / 'runs'}\n"
        f"arms: {{base: {{backbone: {backbone}}}}}\n"
        f"data: {{train: [{pairs}], batch_size: 8, train_group_size: 2}}\n"
        "loss: {sigreg: {num_slices: 4}}\n"
        "trainer: {accelerator: cpu, max_steps: 2, enable_progress_bar: false}\n"
        "callbacks:\n"
        f"  similarity: {{preset: realignment, {probes}, metrics: [cka], null: 20,"
        " heatmap_every_n_evaluations: 0}\n"
        f"  retrieval: {{preset: retrieval_quality, pairs: {pairs}, {rhythm}}}\n"
        f"  recorder: {{preset: record_run, limit_probe_batches: null, {probes}, {rhythm}}}\n"
    )
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def trained_recipe(recipe, tmp_path_factory):
    """The same recipe, which trains to its end as it stands."""
    assert train([f"recipe={recipe}", f"output_dir={tmp_path_factory.mktemp('runs')}"]) == 0
    return recipe


def answer(recipe, override: str) -> str | None:
    """The error that the command gives before a model loads, `None` where it would go on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = load_config(str(recipe), [override])
            _checked_pairs(config)
            build_trainer(config, recipe.parent / "new", build_callbacks(config))
        except HRSAError as error:
            return str(error)
    return None


def _check_answer(override: str, message: str) -> None:
    assert len(message.splitlines()) <= 3, (override, message)
    assert len(message) < 1000, (override, message)


def _without_others(key: str) -> list[str]:
    """Settings that leave a run the monitors that a key has to do with."""
    head, *rest = key.split(".")
    own = {"similarity"} if head in ("name", "description", "arms", "output_dir") else set()
    if head == "callbacks":
        own = set(rest[:1]) or set(CALLBACKS)
    return [f"callbacks.{name}=null" for name in CALLBACKS if name not in own]


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", EVERY)
def test_hostile_values_are_answered_or_accepted(recipe, key, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    before = _files(recipe.parent.parent)
    for value in FEW:
        override = f"{key}={value}"
        if (message := answer(recipe, override)) is not None:
            _check_answer(override, message)
    assert _files(recipe.parent.parent) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", EVERY)
def test_what_is_accepted_runs_to_its_end(trained_recipe, key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    outside = _files(trained_recipe.parent)
    codes, problems = Counter(), []
    for value in [*FEW, *MANY]:
        override = f"{key}={value}"
        settings = [f"recipe={trained_recipe}", *_without_others(key), override]
        if key != "output_dir":
            settings.append(f"output_dir={tmp_path / 'runs'}")
        started = time.perf_counter()
        try:
            code = train(settings)
            said = capsys.readouterr().err
            codes[code] += 1
            assert code in (0, 2), said
            if code == 2:
                _check_answer(override, said)
                assert time.perf_counter() - started < 10, said
        except BaseException as error:  # the next value is tried, whatever this one ended with
            problems.append((override[:200], type(error).__name__, str(error)[:1000]))
    with capsys.disabled():
        print(f"\n{key}: {dict(codes)} by exit code", flush=True)
    assert not problems
    assert key == "output_dir" or _files(trained_recipe.parent) == outside


@pytest.mark.slow
def test_a_sample_through_processes(trained_recipe, tmp_path):
    drawn = random.Random(16).sample([f"{k}={v}" for k in EVERY for v in [*FEW, *MANY]], 60)
    for override in drawn:
        done = subprocess.run(
            [sys.executable, "-m", "hrsa_lightning.train", f"recipe={trained_recipe}", override],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in (0, 2), (override, done.stderr)
        assert "Traceback" not in done.stderr, override
        if done.returncode == 2:
            _check_answer(override, done.stderr)


def test_the_fuzzer_reaches_every_key(recipe):
    assert len(EVERY) > 130
    assert resolve_path("embedded:x") != "embedded:x"
    assert answer(recipe, "seed=1") is None

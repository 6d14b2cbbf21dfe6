"""mteb's own machinery on a task whose data are here; no network."""

import numpy as np
import pytest

from hrsa_lightning.data import read_retrieval_set
from hrsa_lightning.errors import BackboneError, ConfigError, DataError, HRSAWarning
from hrsa_lightning.evaluate.benchmarks import (
    TaskEncoder,
    chosen_instruction,
    find_tasks,
    read_instructions,
    score_benchmarks,
)
from hrsa_lightning.evaluate.scoring import Tasks, evaluate_models, score_retrieval
from hrsa_lightning.runs.encoder import find_models
from tests.evaluate.runs import write_pairs

# mteb warns on its own account, about models that are on no hub
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def _mteb():
    pytest.importorskip("mteb", reason="the extra `eval` is not installed")


@pytest.fixture
def task(tmp_path):
    from tests.evaluate.local_task import LocalRetrieval

    local = LocalRetrieval()
    local.pairs = write_pairs(tmp_path / "pairs.jsonl", 9)
    return local


def test_an_mteb_task_scores_an_arm_as_we_do(runs, task, tmp_path):
    """Instruction on queries alone, so that the score is that of the same pairs."""
    (model,) = find_models(f"{runs[0]}:rlvr")
    results = evaluate_models([model], Tasks(benchmarks=(task,)), tmp_path / "cache")
    (scores,) = results[model.name]
    expected = score_retrieval("p", read_retrieval_set([task.pairs]), model.load())
    assert (scores.task, scores.main, scores.unit) == ("LocalRetrieval", "ndcg_at_10", "subset")
    assert scores.score == pytest.approx(expected.score, abs=1e-5)
    assert scores.units == pytest.approx([scores.score])


class Recorder:
    identity = "recorder"

    def __init__(self):
        self.queries, self.passages = [], []

    def encode_queries(self, texts):
        self.queries += texts
        return np.eye(len(texts), 40, dtype=np.float32) + 0.01

    def encode_passages(self, texts):
        self.passages += texts
        return np.eye(len(texts), 40, dtype=np.float32) + 0.01


def test_instructions_and_cache(task, tmp_path):
    encoder = Recorder()
    (scores,) = score_benchmarks([task], "a/model", "v1", lambda: encoder, tmp_path)
    pairs = read_retrieval_set([task.pairs])
    assert encoder.queries == [("Find it", text) for _, text in pairs.queries]
    assert {text.strip() for text in encoder.passages} == set(pairs.corpus)

    def never():
        raise AssertionError("the model was loaded although its results are there")

    assert score_benchmarks([task], "a/model", "v1", never, tmp_path) == [scores]
    again = Recorder()
    score_benchmarks([task], "a/model", "v2", lambda: again, tmp_path)
    assert again.queries


def test_instructions_of_ones_own(task, tmp_path):
    """They take mteb's place, and scores with others are not taken for theirs."""
    file = tmp_path / "instructions.json"
    file.write_text('{"LocalRetrieval": "Look for it", "default": "Any", "SciFact": "Check"}')
    given = read_instructions(file, [task])
    encoder, other = Recorder(), Recorder()
    score_benchmarks([task], "a/model", "v1", lambda: encoder, tmp_path, instructions=given)
    assert {instruction for instruction, _ in encoder.queries} == {"Look for it"}
    score_benchmarks([task], "a/model", "v1", lambda: other, tmp_path)
    assert {instruction for instruction, _ in other.queries} == {"Find it"}
    score_benchmarks([task], "a/model", "v1", None, tmp_path, instructions=given)
    bare = task.metadata.model_copy(update={"name": "Bare", "prompt": None})
    assert chosen_instruction(bare, given) == "Any"
    assert chosen_instruction(task.metadata, {"default": "Any"}) is None
    for text, message in (
        ('{"SciFakt": "x"}', "expected names of tasks or default, got 'SciFakt'"),
        ('{"default": ""}', "default: expected a text, got ''"),
        ("[]", "expected a JSON object"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_instructions(file, [task])


def test_a_name_without_an_owner_is_cached_too(task, tmp_path):
    """A folder in the working directory; mteb's own models are all called OWNER/NAME."""
    first = score_benchmarks([task], "exported", "v1", Recorder, tmp_path)
    assert score_benchmarks([task], "exported", "v1", None, tmp_path) == first


@pytest.mark.slow  # mteb builds all of its benchmarks
def test_names_are_those_of_benchmarks_and_tasks():
    with pytest.warns(HRSAWarning, match=r"mteb has replaced 'BRIGHT' by 'BRIGHT\(v1.1\)'"):
        names = [task.metadata.name for task in find_tasks(["BRIGHT", "SciFact", "SciFact"])]
    assert sorted(names) == ["BrightRetrieval", "SciFact"]
    assert len(find_tasks(["BRIGHT(short)"])) == 12
    # One task, StackOverflowQA, is of the multilingual and of the code benchmark.
    assert len(find_tasks(["paper"])) == 131 + 12 + 12 - 1
    with pytest.raises(ConfigError, match=r"'SciFac' is neither a benchmark nor a task.*SciFact"):
        find_tasks(["SciFac"])


@pytest.mark.slow  # mteb builds all of its benchmarks
def test_each_part_of_bright_has_its_own_instruction():
    from mteb.types import PromptType

    tasks = find_tasks(["BRIGHT(v1.1)"])
    encoder = Recorder()
    model = TaskEncoder("a/model", "v1", lambda: encoder)
    for task in tasks:
        for kind in PromptType:
            batch = [{"text": [f"{task.metadata.name} {kind.value}"]}]
            model.encode(batch, task_metadata=task.metadata, prompt_type=kind)
    names = [task.metadata.name for task in tasks]
    assert encoder.passages == [f"{name} document" for name in names]
    asked = {text: instruction for instruction, text in encoder.queries}
    assert list(asked) == [f"{name} query" for name in names]
    assert "biology post" in asked["BrightBiologyRetrieval query"]
    assert "Coding problem" in asked["BrightLeetcodeRetrieval query"]
    assert all(asked.values())


def test_data_that_cannot_be_had_is_one_line(task, tmp_path):
    task.pairs = tmp_path / "missing.jsonl"
    with pytest.raises(DataError, match=r"task LocalRetrieval: .*no such file"):
        score_benchmarks([task], "a/model", "v1", Recorder, tmp_path)


@pytest.mark.parametrize("kind", ["DatasetNotFoundError", "DatasetGenerationError"])
@pytest.mark.parametrize("public", [True, False])
def test_data_that_cannot_be_loaded_is_one_line(public, kind, task, tmp_path, monkeypatch):
    """Of data that is not public mteb raises nothing, but returns no result."""
    from datasets import exceptions

    def load(**_):
        raise getattr(exceptions, kind)("Dataset 'local' is gated")

    metadata = task.metadata.model_copy(update={"is_public": public})
    monkeypatch.setattr(type(task), "metadata", metadata)
    monkeypatch.setattr(task, "load_data", load)
    with pytest.raises(DataError, match="task LocalRetrieval: Dataset 'local' is gated"):
        score_benchmarks([task], "a/model", "v1", Recorder, tmp_path)


def test_a_model_that_cannot_be_loaded_is_no_fault_of_the_task(task, tmp_path):
    def broken():
        raise BackboneError("model 'x' cannot be loaded")

    with pytest.raises(BackboneError, match=r"^model 'x' cannot be loaded$"):
        score_benchmarks([task], "a/model", "v1", broken, tmp_path)

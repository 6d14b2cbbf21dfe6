"""mteb's own machinery on a task whose data are here; no network."""

import numpy as np
import pytest

from hrsa_lightning.data import read_retrieval_set
from hrsa_lightning.encoders import find_models
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.evaluation.benchmarks import find_tasks, score_benchmarks
from hrsa_lightning.evaluation.pairs import score_retrieval
from hrsa_lightning.evaluation.runner import Tasks, evaluate_models
from tests.evaluation.runs import write_pairs

# mteb warns on its own account, about models that are on no hub
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True, scope="module")
def _mteb():
    pytest.importorskip("mteb", reason="the extra `eval` is not installed")


@pytest.fixture
def task(tmp_path):
    from tests.evaluation.local_task import LocalRetrieval

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


@pytest.mark.slow  # mteb builds all of its benchmarks
def test_names_are_those_of_benchmarks_and_tasks():
    names = [task.metadata.name for task in find_tasks(["BRIGHT", "SciFact", "SciFact"])]
    assert "SciFact" in names
    assert len(names) == len(set(names)) > 1
    with pytest.raises(ConfigError, match=r"'SciFac' is neither a benchmark nor a task.*SciFact"):
        find_tasks(["SciFac"])


def test_data_that_cannot_be_had_is_one_line(task, tmp_path):
    task.pairs = tmp_path / "missing.jsonl"
    with pytest.raises(DataError, match=r"task LocalRetrieval: .*no such file"):
        score_benchmarks([task], "a/model", "v1", Recorder, tmp_path)

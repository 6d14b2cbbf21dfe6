"""mteb's own machinery on a task whose data are here; no network."""

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="the extra `eval` is not installed")

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from hrsa_lightning.data import read_retrieval_set
from hrsa_lightning.encoders import find_models
from hrsa_lightning.errors import ConfigError, DataError
from hrsa_lightning.evaluation.benchmarks import find_tasks, score_benchmarks
from hrsa_lightning.evaluation.pairs import score_retrieval
from hrsa_lightning.evaluation.runner import Tasks, evaluate_models
from tests.evaluation.runs import write_pairs

# mteb warns on its own account, about models that are on no hub
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

INSTRUCTION = "Find it"


class LocalRetrieval(AbsTaskRetrieval):
    """The pairs of `write_pairs` as one of mteb's retrieval tasks."""

    metadata = TaskMetadata(
        name="LocalRetrieval",
        description="Local pairs",
        type="Retrieval",
        dataset={"path": "local", "revision": "1"},
        reference=None,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        prompt={"query": INSTRUCTION},
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation="",
    )
    pairs = None

    def load_data(self, **_):
        task = read_retrieval_set([self.pairs])
        split = {
            "queries": Dataset.from_list(
                [{"id": f"q{n}", "text": query[1]} for n, query in enumerate(task.queries)]
            ),
            "corpus": Dataset.from_list(
                [{"id": f"d{n}", "text": text, "title": ""} for n, text in enumerate(task.corpus)]
            ),
            "relevant_docs": {
                f"q{n}": {f"d{row}": 1 for row in right} for n, right in enumerate(task.relevance)
            },
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


@pytest.fixture
def task(tmp_path):
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
    assert encoder.queries == [(INSTRUCTION, text) for _, text in pairs.queries]
    assert {text.strip() for text in encoder.passages} == set(pairs.corpus)

    def never():
        raise AssertionError("the model was loaded although its results are there")

    assert score_benchmarks([task], "a/model", "v1", never, tmp_path) == [scores]
    again = Recorder()
    score_benchmarks([task], "a/model", "v2", lambda: again, tmp_path)
    assert again.queries


def test_names_are_those_of_benchmarks_and_tasks():
    names = [task.metadata.name for task in find_tasks(["BRIGHT", "SciFact", "SciFact"])]
    assert "SciFact" in names
    assert len(names) == len(set(names)) > 1
    with pytest.raises(ConfigError, match="'SciFac' is neither a benchmark nor a task.*SciFact"):
        find_tasks(["SciFac"])


def test_data_that_cannot_be_had_is_one_line(task, tmp_path):
    task.pairs = tmp_path / "missing.jsonl"
    with pytest.raises(DataError, match=r"task LocalRetrieval: .*no such file"):
        score_benchmarks([task], "a/model", "v1", Recorder, tmp_path)

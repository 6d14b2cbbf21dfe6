"""A task of mteb whose data are a local file; importing this needs mteb."""

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from hrsa_lightning.data import read_retrieval_set

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


class SecondRetrieval(LocalRetrieval):
    """Another task, with an instruction of its own."""

    metadata = LocalRetrieval.metadata.model_copy(
        update={"name": "SecondRetrieval", "prompt": {"query": "Look it up"}}
    )

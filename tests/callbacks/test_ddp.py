"""Two ranks give the values of one process, leave no trace, and never wait for each other."""

import os
import warnings

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment

from hrsa_lightning.callbacks import RetrievalMonitor, SimilarityMonitor
from hrsa_lightning.errors import ConfigError
from tests.callbacks import projects
from tests.callbacks.projects import classifier, fit, flavor, same, weights
from tests.histories import read_tags

pytestmark = pytest.mark.ddp


def monitor(**options):
    defaults = {
        "probes": projects.probe_batches(),
        "layers": ["encoder.layers.*", "output"],
        "every_n_train_steps": 2,
        "metrics": ["cka", "knn_overlap_10", "dimension_correlation"],
        "on_error": "raise",
        "heatmap_every_n_evaluations": 0,
    }
    return SimilarityMonitor("initial", **{**defaults, **options})


class Encode:
    """Picklable stand-in for an embedding model."""

    def __call__(self, module, texts):
        values = [[float(ord(c)) for c in str(text)[-4:].rjust(4)] for text in texts]
        return torch.tensor(values).sin()


PAIRS = [{"query": f"query {n}", "pos": [f"right {n}"], "neg": [f"other {n}"]} for n in range(7)]


def distributed(rank, callbacks, folder, strategy="ddp", **options):
    """A fit in which this process is one of two ranks, as a launcher would have started it."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of the framework
            return fit(
                callbacks,
                folder,
                devices=2,
                strategy=strategy,
                plugins=[LightningEnvironment()],
                max_steps=3,
                **options,
            )
    finally:
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)  # the framework removes some itself


def records(watch):
    return [
        {tag: value for tag, value in record["values"].items() if not tag.endswith("seconds")}
        for record in read_tags(watch.history_path)
    ]


def watch_and_compare(rank, world_size, folder):
    watch = monitor()
    ranking = RetrievalMonitor(PAIRS, encode=Encode(), on_error="raise")
    trainer = distributed(rank, [watch, ranking], folder / "watched")
    alone = distributed(rank, [], folder / "alone")
    seen = {tag: float(value) for tag, value in trainer.callback_metrics.items()}
    held = sorted(watch.evaluator.extractor.probes[""].held)
    return same(weights(trainer), weights(alone)), seen, records(watch), records(ranking), held


def test_values_are_those_of_one_process_and_weights_those_without(ddp_pool, tmp_path):
    results = ddp_pool.run(watch_and_compare, tmp_path)
    single, ranking = monitor(), RetrievalMonitor(PAIRS, encode=Encode(), on_error="raise")
    fit([single, ranking], tmp_path / "single", max_steps=1)
    for unchanged, seen, found, scores, _ in results:
        assert unchanged
        assert found[0] == pytest.approx(records(single)[0], abs=1e-5)
        assert scores[0] == pytest.approx(records(ranking)[0], abs=1e-6)
        assert len(found) == 3, "one record per evaluation, from one rank"
        last = found[-1]
        assert {tag: seen[tag] for tag in last} == pytest.approx(last), "on every rank"
    assert [held for *_, held in results] == [[0, 2, 4], [0, 1, 3]]


def few_probes(rank, world_size, folder):
    watch = monitor(probes=projects.probe_batches()[:1], metrics=["cka"])
    distributed(rank, [watch], folder)
    return records(watch)


def test_fewer_batches_than_ranks(ddp_pool, tmp_path):
    first, second = ddp_pool.run(few_probes, tmp_path)
    assert first == second
    assert len(first) == 3


class FailsOn:
    def __init__(self, rank):
        self.rank = rank

    def __call__(self, module, batch):
        if module.trainer.global_step == 2 and module.trainer.global_rank == self.rank:
            raise RuntimeError("only here")
        return module(batch[0])


def one_rank_fails(rank, world_size, folder):
    watch = monitor(forward=FailsOn(1), on_error="warn")
    trainer = distributed(rank, [watch], folder)
    return trainer.global_step, [r["step"] for r in read_tags(watch.history_path)]


def test_a_failure_on_one_rank_is_a_warning_on_all(ddp_pool, tmp_path):
    assert ddp_pool.run(one_rank_fails, tmp_path) == [(3, [0, 3]), (3, [0, 3])]


def budget(rank, world_size, folder):
    watch = monitor(every_n_train_steps=1, max_overhead=0.001)
    distributed(rank, [watch], folder)
    return [r["step"] for r in read_tags(watch.history_path)]


def test_ranks_agree_on_what_the_budget_allows(ddp_pool, tmp_path):
    assert ddp_pool.run(budget, tmp_path) == [[0, 3], [0, 3]]


def sharded_module(pl):
    from torch.distributed.fsdp import fully_shard

    module = projects.classifier(pl)

    def configure_model(self):
        for part in (*self.encoder.layers, self.head):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])

    type(module).configure_model = configure_model
    return module


def fit_sharded(rank, callbacks, folder):
    pl = flavor()
    strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return distributed(rank, callbacks, folder, strategy=strategy, make=sharded_module)


def sharded(rank, world_size, folder):
    results = []
    for watched in (True, False):
        watch = monitor()
        trainer = fit_sharded(rank, [watch] if watched else [], folder)
        state = trainer.lightning_module.state_dict()
        results.append({k: getattr(v, "full_tensor", lambda v=v: v)() for k, v in state.items()})
        if watched:
            found = records(watch)
    return same(*results), found


def test_weights_that_are_spread_over_ranks(ddp_pool, tmp_path):
    single = monitor()
    fit([single], tmp_path / "single", max_steps=1)
    for unchanged, found in ddp_pool.run(sharded, tmp_path):
        assert unchanged
        assert found[0] == pytest.approx(records(single)[0], abs=1e-5)


class CannotPoolOn:
    """A pooling that one rank cannot do, at one step and for one batch only."""

    def __init__(self, rank):
        self.rank = rank
        self.calls = 0

    def __call__(self, activation, mask):
        self.calls += 1
        if self.rank == dist.get_rank() and self.calls == 5:
            raise RuntimeError("only here")
        return activation


def sharded_and_uneven(rank, world_size, folder):
    """Watch with fewer batches than ranks, with a failure on one rank, and against a file."""
    batches = projects.probe_batches()
    few = monitor(name="few", probes=batches[:1], metrics=["cka"])
    failing = monitor(name="failing", pooling={"output": CannotPoolOn(1)}, on_error="warn")
    fit_sharded(rank, [few, failing], folder)
    torch.save({"state_dict": classifier(flavor()).state_dict()}, folder / f"{rank}.ckpt")
    against = SimilarityMonitor(str(folder / f"{rank}.ckpt"), probes=batches)
    try:
        fit_sharded(rank, [against], folder)
    except ConfigError as error:
        refusal = str(error)
    steps = [[r["step"] for r in read_tags(watch.history_path)] for watch in (few, failing)]
    return records(few), *steps, refusal


def test_sharded_weights_and_batches_that_do_not_share_out_evenly(ddp_pool, tmp_path):
    single = monitor(probes=projects.probe_batches()[:1], metrics=["cka"])
    fit([single], tmp_path / "single", max_steps=1)
    expected = {tag.replace("similarity", "few", 1): v for tag, v in records(single)[0].items()}
    for values, few, failing, refusal in ddp_pool.run(sharded_and_uneven, tmp_path):
        assert values[0] == pytest.approx(expected, abs=1e-5)
        assert few == [0, 2, 3]
        assert failing == [0, 3], "the evaluation at step 2 failed on both, and no one waits"
        assert "weights that are spread over ranks" in refusal

import itertools

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from hrsa_lightning.callbacks import SimilarityMonitor
from hrsa_lightning.losses import AlignmentLoss
from hrsa_lightning.models.embedder import EmbeddingModel
from hrsa_lightning.modules import Alignment, PairedContrastiveModule
from tests.contrastive_runs import WORDS, GradientLog, fit, make_arm, trained_weights, write_pairs
from tests.modules.test_contrastive import _pool_strategy, _worst_difference
from tests.tiny import make_backbone

ARMS = {"base": 1, "other": 2}
CHUNKED = {"max_tokens_per_chunk": 40, "activation_budget": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alignment")
    write_pairs(folder / "pairs.jsonl")
    make_arm(folder / "backbone")
    make_backbone(folder / "reference", seed=7, hidden=64)
    return folder


def _module(place, reference, *, seeds=ARMS, direction="push", weight=5.0, lora=(), **options):
    own = {} if lora == () else {"lora": lora}
    dropout = options.pop("dropout", 0.0)
    arms = {
        name: make_arm(place / "backbone", seed, dropout, **own) for name, seed in seeds.items()
    }
    if reference == "model":
        reference = EmbeddingModel.from_pretrained(place / "reference")
    alignment = None
    if reference is not None:
        alignment = Alignment(arms, reference, loss=AlignmentLoss(direction), weight=weight)
    # At the start itself CKA is 1, where it has no gradient: go on from another place.
    generator = torch.Generator().manual_seed(3)
    for arm in arms.values():
        for name, weights in arm.named_parameters():
            if weights.requires_grad and (lora is None or "lora_B" in name):
                weights.data += 0.1 * torch.randn(weights.shape, generator=generator)
    return PairedContrastiveModule(arms, seeds=seeds, lr=1e-2, alignment=alignment, **options)


def _gradients(place, folder, reference, trainer=None, **options):
    log = GradientLog()
    module = _module(place, reference, **options)
    trainer = {"max_steps": 1, **(trainer or {})}
    fit(module, place / "pairs.jsonl", folder, callbacks=(log,), **trainer)
    return log.steps[0]


def _on_rank(rank, world_size, place, folder, kind, reference, options):
    strategy = _pool_strategy(kind, rank, world_size)
    return _gradients(place, folder, reference, strategy, **options)


CASES = [
    ("initial", {}),
    ("initial", {"lora": None, "direction": "pull"}),
    ("arm:other", {"direction": "pull"}),
    ("arm:other", {"direction": "pull", "seeds": dict.fromkeys(ARMS, 1)}),  # on shared batches
    ("model", {}),
]


@pytest.mark.parametrize(("reference", "options"), CASES)
def test_chunks_give_the_gradient_of_the_whole_batch(place, tmp_path, reference, options):
    plain = _gradients(place, tmp_path, None, **options)
    whole = _gradients(place, tmp_path, reference, **options)
    chunked = _gradients(place, tmp_path, reference, **options, **CHUNKED)
    assert _worst_difference(whole, chunked) < 1e-5
    assert _worst_difference(plain, whole) > 1e-2


@pytest.mark.ddp
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("reference", "options"), CASES)
def test_two_ranks_give_the_gradient_of_one_process(
    ddp_pool, place, tmp_path, reference, options, kind
):
    expected = _gradients(place, tmp_path, reference, **options)
    for chosen in (options, {**options, **CHUNKED}):
        for found in ddp_pool.run(_on_rank, place, tmp_path, kind, reference, chosen):
            assert _worst_difference(expected, found) < 1e-4


class Embeddings(Callback):
    """What the alignment is given, step by step."""

    def __init__(self, module):
        self.seen = []
        module.alignment.loss.register_forward_pre_hook(lambda _, args: self.seen.append(args))


@pytest.mark.parametrize("lora", [{"r": 4, "lora_dropout": 0.5}, None])
def test_the_start_stays_what_it_was(place, tmp_path, lora):
    arms = {"base": make_arm(place / "backbone", 1, lora=lora)}
    alignment = Alignment(arms, "initial")
    module = PairedContrastiveModule(arms, lr=0.1, alignment=alignment)
    watched = Embeddings(module)
    fit(module, place / "pairs.jsonl", tmp_path, max_steps=2, batch_size=24)
    (live, start), (later, second_start) = watched.seen
    # One batch holds all pairs, in another order: equal texts have equal rows.
    torch.testing.assert_close(
        start.sort(0).values, second_start.sort(0).values, atol=1e-5, rtol=1e-4
    )
    assert (later.sort(0).values - second_start.sort(0).values).abs().max() > 1e-2
    assert live.requires_grad
    assert not start.requires_grad
    assert module.arms["base"].training
    assert all(
        p.requires_grad == (lora is None or "lora" in n) for n, p in arms["base"].named_parameters()
    )


def test_a_trained_adapter_is_part_of_the_start(place, tmp_path):
    module = _module(place, None, seeds={"base": 1})
    arms = module.named_arms()
    assert len(Alignment(arms, "initial").frozen_models()) == 1  # its adapter does something
    fresh = {"base": make_arm(place / "backbone", 1)}
    assert Alignment(fresh, "initial").frozen_models() == []


def test_an_arm_that_others_are_compared_with_trains_as_if_it_were_alone(place, tmp_path):
    beside = _module(place, "arm:other", dropout=0.2)
    assert beside.alignment.order(beside.arms) == ["other", "base"]
    fit(beside, place / "pairs.jsonl", tmp_path)
    alone = _module(place, None, dropout=0.2)
    fit(alone, place / "pairs.jsonl", tmp_path)
    for name, same in (("other", True), ("base", False)):
        expected, found = trained_weights(alone, name), trained_weights(beside, name)
        assert all(torch.equal(found[key], expected[key]) for key in expected) == same


def test_no_checkpoint_holds_a_reference(place, tmp_path):
    module = _module(place, "model", seeds={"base": 1})
    fit(module, place / "pairs.jsonl", tmp_path, max_steps=1)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"] == {}
    assert not any(p.requires_grad for p in module.alignment.parameters())


def test_mixed_precision_gives_adapters_their_gradients(place, tmp_path):
    options = {"seeds": {"base": 1}, "trainer": {"precision": "bf16-mixed"}}
    full = _gradients(place, tmp_path, "initial", seeds={"base": 1})
    for chunks in ({}, CHUNKED):
        mixed = _gradients(place, tmp_path, "initial", **options, **chunks)
        assert mixed.keys() == full.keys()
        a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (mixed, full))
        assert torch.cosine_similarity(a, b, dim=0) > 0.98


def test_unknown_references_are_refused(place):
    arms = {"base": make_arm(place / "backbone")}
    for reference in ("start", "arm:none", "base"):
        with pytest.raises(ValueError, match=r"reference: expected initial, arm:NAME of base"):
            Alignment(arms, reference)


@pytest.mark.parametrize("reference", ["initial", "arm:base"])
def test_the_monitor_sees_a_pull_and_a_push(place, tmp_path, reference):
    """CKA of one arm at the end of runs that differ in the alignment alone."""
    texts = [" ".join(draw) for draw in itertools.permutations(WORDS[:5], 3)]
    seen = []
    for direction in ("push", None, "pull"):
        arms = {name: make_arm(place / "backbone", seed, 0.0) for name, seed in ARMS.items()}
        term = None
        if direction:
            term = Alignment(arms, reference, loss=AlignmentLoss(direction), weight=20.0)
        module = PairedContrastiveModule(arms, seeds=ARMS, lr=2e-2, alignment=term)
        monitor = SimilarityMonitor(
            reference,
            texts,
            ["output"],
            arms="arms",
            metrics=["cka"],
            every_n_train_steps=20,
            heatmap_every_n_evaluations=0,
            history=None,
            on_error="raise",
        )
        fit(module, place / "pairs.jsonl", tmp_path, max_steps=20, callbacks=(monitor,))
        seen += [m.value for m in monitor.latest if (m.metric, m.arm) == ("cka", "other")]
    pushed, plain, pulled = seen
    assert pushed < plain - 0.02
    assert pulled > plain + 0.1

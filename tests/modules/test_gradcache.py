from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from hrsa_lightning.modules import PairedContrastiveModule, contrastive, gradcache
from hrsa_lightning.modules.gradcache import ActivationBudget, CachedEncoding, _saved_bytes
from hrsa_lightning.modules.gradient_sync import GradientSync
from tests.contrastive_runs import fit, make_arm, write_pairs


@pytest.mark.parametrize(("device", "expected"), [("cpu", 250), ("cuda", 500)])
def test_auto_is_half_of_what_is_free_shared_by_the_processes(monkeypatch, device, expected):
    free = iter([1000, 10])
    monkeypatch.setattr(gradcache, "free_memory", lambda device: next(free))
    budget = ActivationBudget("auto")
    for _ in range(2):  # asked at the first step only
        budget.reset(torch.device(device), num_processes=2)
        assert budget.limit == expected


def test_auto_leaves_room_for_gradients_and_moments_that_do_not_exist_yet(tmp_path, monkeypatch):
    free = 10**9
    monkeypatch.setattr(gradcache, "free_memory", lambda device: free)
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    limits = []
    for checkpoint in (None, tmp_path / "step_000002"):  # moments are restored with a checkpoint
        saver = ModelCheckpoint(tmp_path, "step_{step:06d}", every_n_train_steps=2)
        saver.auto_insert_metric_name, saver.FILE_EXTENSION = False, ""
        arms = {name: make_arm(tmp_path / "backbone", lora=None) for name in ("a", "b")}
        module = PairedContrastiveModule(arms, activation_budget="auto")
        options = {"enable_checkpointing": True, "max_epochs": -1, "callbacks": (saver,)}
        fit(module, pairs, tmp_path, max_steps=3, ckpt_path=checkpoint, **options)
        limits.append(module._budget.limit)
    weights = sum(p.nbytes for p in module.parameters())
    assert limits == [(free - 3 * weights) // 2, (free - weights) // 2]
    budget = ActivationBudget("auto")
    budget.reset(torch.device("cpu"), 10**9, [module.configure_optimizers()["optimizer"]])
    assert budget.limit == 0  # no room at all


def test_inputs_of_checkpointed_layers_are_counted(tmp_path):
    ids = torch.randint(0, 300, (4, 16))
    counted = {}
    for checkpointing in (False, True):
        arm = make_arm(tmp_path / "backbone", gradient_checkpointing=checkpointing)
        with _saved_bytes(list(arm.parameters())) as saved:
            arm(input_ids=ids, attention_mask=torch.ones_like(ids))
        counted[checkpointing] = sum(saved.values())
    inputs = arm.num_layers * ids.numel() * arm.embedding_dim * 4
    assert inputs <= counted[True] < 3 * inputs
    assert counted[False] > 5 * inputs


@pytest.mark.parametrize("limit", [10**9, 0])
def test_chunks_share_one_cast_of_trained_weights(limit):
    layer = torch.nn.Linear(64, 64, bias=False)
    texts = torch.randn(4, 64, requires_grad=True)
    budget = ActivationBudget(limit)
    budget.reset(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16), _saved_bytes([layer.weight]) as saved:
        cached = CachedEncoding(
            lambda number: layer(texts[number : number + 1]).float(),
            [1] * 4,
            [1] * 4,
            (0,),
            budget,
            layer,
        )
        cached.embeddings.grad = torch.ones(4, 64)
        last, gradient = cached.backward(nullcontext)
        last.backward(gradient)
    assert list(saved.values()).count(2 * 64 * 64) == 1
    expected = torch.ones(4, 64).bfloat16().T @ texts.detach().bfloat16()
    torch.testing.assert_close(layer.weight.grad, expected.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("collective_forward", "expected"), [(False, 2), (True, 1)])
def test_arms_share_a_budget_where_their_graphs_are_kept_side_by_side(
    tmp_path, monkeypatch, collective_forward, expected
):
    class Sync(GradientSync):
        pass

    Sync.collective_forward = collective_forward
    resets = []
    inner = ActivationBudget.reset
    monkeypatch.setattr(contrastive, "gradient_sync", lambda model: Sync())
    monkeypatch.setattr(
        ActivationBudget, "reset", lambda self, *given: resets.append(given) or inner(self, *given)
    )
    arms = {name: make_arm(tmp_path / "backbone", seed) for name, seed in (("a", 1), ("b", 2))}
    module = PairedContrastiveModule(arms, activation_budget=60_000, max_tokens_per_chunk=64)
    fit(module, write_pairs(tmp_path / "pairs.jsonl"), tmp_path, max_steps=1)
    assert [given[:2] for given in resets] == [(torch.device("cpu"), 1)] * expected

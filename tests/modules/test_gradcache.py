import pytest
import torch

from hrsa_lightning.modules import PairedContrastiveModule, contrastive, gradcache
from hrsa_lightning.modules.gradcache import ActivationBudget, _saved_bytes
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
    assert resets == [(torch.device("cpu"), 1)] * expected

import pytest
import torch

from hrsa_lightning.functional import linear_cka
from hrsa_lightning.losses import AlignmentLoss


def rows(seed: int = 0, n: int = 48, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed)).unbind()


@pytest.mark.parametrize("options", [{}, {"debiased": False}, {"standardize": True}])
def test_equals_cka(options):
    x, noise = rows()
    y = x + noise
    cka = linear_cka(x, y, **options).item()
    assert AlignmentLoss(**options)(x, y).item() == pytest.approx(1 - cka, rel=1e-5)
    assert AlignmentLoss("push", **options)(x, y).item() == pytest.approx(cka, rel=1e-5)


@pytest.mark.parametrize(("direction", "reached"), [("pull", 0.95), ("push", 0.1)])
def test_training_pulls_towards_the_reference_and_pushes_away_from_it(direction, reached):
    x, noise = rows()
    reference = x + noise
    model = torch.nn.Linear(6, 6)
    model.load_state_dict({"weight": torch.eye(6), "bias": torch.zeros(6)})
    live = torch.nn.Parameter(x.clone())
    optimizer = torch.optim.Adam([live, *model.parameters()], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        AlignmentLoss(direction)(model(live), reference).backward()
        optimizer.step()
    cka = linear_cka(model(live).detach(), reference)
    assert cka > reached if direction == "pull" else cka < reached


def test_the_reference_gets_no_gradient_and_unrelated_rows_no_push():
    x, y = (v.requires_grad_() for v in rows(1))
    AlignmentLoss()(x, y).backward()
    assert x.grad.abs().max() > 0
    assert y.grad is None
    for seed in range(20):
        x, y = rows(seed)
        if linear_cka(x, y) < 0:
            assert AlignmentLoss("push")(x.requires_grad_(), y).item() == 0
            break


def test_half_precision_and_bad_options():
    x, y = rows()
    loss = AlignmentLoss()(x.bfloat16().requires_grad_(), y)
    assert loss.dtype == torch.float32
    with pytest.raises(ValueError, match="direction: expected pull or push, got 'away'"):
        AlignmentLoss("away")
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        AlignmentLoss()(x[:3], y[:3])

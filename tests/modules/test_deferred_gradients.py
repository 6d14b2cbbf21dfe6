import torch
from torch import nn

from hrsa_lightning.modules.deferred_gradients import DeferredGradients
from tests.allocations import peak_bytes


def _captured(deferred, layer, x, scale=1.0):
    with deferred.capture(layer, scale) as backward:
        backward(3 * layer(x).sum())


def test_float16_scaling_is_taken_out_and_earlier_gradients_stay():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.ones(1, 2)
    deferred = DeferredGradients()
    _captured(deferred, layer, torch.tensor([[1.0, 2.0]]), scale=1024.0)
    assert torch.equal(layer.weight.grad, torch.ones(1, 2))
    loss = deferred.loss(torch.tensor(7.0))
    assert loss.item() == 7.0
    (loss * 512.0 / 2).backward()  # half of the scale, as accumulating two batches has it
    torch.testing.assert_close(layer.weight.grad, 1 + 256 * torch.tensor([[3.0, 6.0]]))


def test_hooks_of_parameters_run_once_with_the_gradient():
    layer = nn.Linear(2, 1, bias=False)
    seen = []
    deferred = DeferredGradients()
    _captured(deferred, layer, torch.tensor([[1.0, 2.0]]))
    layer.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    deferred.loss(torch.tensor(7.0)).backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.tensor([[3.0, 6.0]]))


def test_the_gradients_of_several_arms_exist_once():
    arms = [nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))) for _ in range(3)]
    x = torch.randn(2, 256)

    def step():
        deferred = DeferredGradients()
        for arm in arms:
            _captured(deferred, arm, x, scale=8.0)
        (deferred.loss(torch.tensor(1.0)) * 8.0).backward()

    size = 4 * sum(p.numel() for arm in arms for p in arm.parameters())
    assert size < peak_bytes(step) < 1.1 * size

"""The pretence itself: each rule refuses what CUDA refuses, and lets pass what CUDA lets pass."""

import pytest
import torch
import torch.distributed as dist

from tests.pretended_cuda.device import CudaRuleError, pretended_cuda


def here(*shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def there(*shape, device="cuda"):
    return here(*shape).to(device)


@pytest.fixture
def devices():
    with pretended_cuda(num_devices=2) as devices:
        yield devices


REFUSED = {
    "operands": lambda: here(2) + there(2),
    "operands of two devices": lambda: there(2) + there(2, device="cuda:1"),
    "a vector of the cpu and a number of the device": lambda: here(2) * there(),
    "in place": lambda: there(2).add_(here(2)),
    "joining": lambda: torch.cat([here(2), there(2)]),
    "joining numbers": lambda: torch.stack([here(), there()]),
    "a layer": lambda: torch.nn.Linear(2, 2)(there(1, 2)),
    "inputs of a layer": lambda: torch.nn.Linear(2, 2).cuda()(here(1, 2)),
    "gather": lambda: there(2, 2).gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "values of the cpu at indices of the device": lambda: here(3)[there(1).long()],
    "masks of the device": lambda: here(3)[there(3) > 1],
    "assigned values": lambda: there(3).__setitem__(torch.tensor([0]), here(1)),
    "numpy": lambda: there(2).numpy(),
    "pinning": lambda: there(2).pin_memory(),
    "a generator of the cpu": lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
    "a generator of the device": lambda: torch.randn(2, generator=torch.Generator("cuda")),
    "a copy that is read too early": lambda: there(2).to("cpu", non_blocking=True),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cuda_refuses_is_refused(devices, case):
    with pytest.raises(CudaRuleError):
        REFUSED[case]()


ALLOWED = {
    "numbers of the cpu": lambda: there(2) * here(),
    "numbers of python": lambda: there(2) * 2.0,
    "indices of the cpu": lambda: there(3)[torch.tensor([0])],
    "a slice filled from the cpu": lambda: _filled(there(3)),
    "a copy": lambda: there(3).copy_(here(3)),
    "like another": lambda: torch.zeros_like(there(2)),
    "made there": lambda: torch.zeros(2, device=torch.device("cuda", 0)),
    "a generator": lambda: torch.randn(2, device="cuda", generator=torch.Generator("cuda")),
    "a view": lambda: there(4).view(2, 2)[0],
    "from pinned memory": lambda: here(2).pin_memory().to("cuda", non_blocking=True),
}


def _filled(tensor):
    tensor[1:] = here(2)
    return tensor


@pytest.mark.parametrize("case", ALLOWED)
def test_what_cuda_allows_is_allowed(devices, case):
    assert ALLOWED[case]().device == torch.device("cuda:0")


def test_tensors_know_their_device(devices):
    tensor = there(2, device="cuda:1")
    assert (tensor.device, tensor.is_cuda, tensor.is_cpu) == (torch.device("cuda:1"), True, False)
    assert tensor.get_device() == 1
    assert tensor.sum().device == tensor.device
    back = tensor.cpu()
    assert (back.device.type, back.is_cuda) == ("cpu", False)
    assert back.numpy().tolist() == [0.0, 1.0]
    assert here(2).pin_memory().is_pinned()
    assert not here(2).is_pinned()
    torch.cuda.set_device(1)
    assert there(2).device == tensor.device, "cuda without a number is the current device"


def test_training_keeps_gradients_and_moments_on_the_device(devices):
    layer = torch.nn.Linear(3, 1).cuda()
    optimizer = torch.optim.AdamW(layer.parameters())
    for _ in range(2):
        layer(there(2, 3)).sum().backward()
        assert layer.weight.grad.is_cuda
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
    assert layer.weight.is_cuda
    assert optimizer.state[layer.weight]["exp_avg"].is_cuda


NONDETERMINISTIC = {
    "median": lambda x: x.median(0),
    "cumsum": lambda x: x.cumsum(0),
    "scatter_reduce": lambda x: x.scatter_reduce(0, x.long(), x, "prod"),
    "weighted bincount": lambda x: x.long().bincount(x),
    "histc": lambda x: x.histc(2),
    "kthvalue": lambda x: x.kthvalue(1),
}


@pytest.mark.parametrize("name", NONDETERMINISTIC)
def test_what_is_not_deterministic_is_refused_where_that_is_asked_for(devices, name, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    function = NONDETERMINISTIC[name]
    function(there(2))
    torch.use_deterministic_algorithms(True)
    try:
        function(here(2))
        for allowed in (torch.median, torch.sort, torch.Tensor.bincount):
            allowed(there(2).long())
        there(2, 2) @ there(2, 2)
        with pytest.raises(CudaRuleError):
            function(there(2))
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        with pytest.raises(CudaRuleError):
            there(2, 2) @ there(2, 2)
    finally:
        torch.use_deterministic_algorithms(False)


WAITING = {
    "item": lambda: there().item(),
    "tolist": lambda: there(2).tolist(),
    "__bool__": lambda: bool(there()),
    "__float__": lambda: float(there()),
    "nonzero": lambda: there(2).nonzero(),
    "unique": lambda: there(2).unique(),
    "selection by mask": lambda: there(2)[there(2) > 0],
    "assignment by mask": lambda: there(2).__setitem__(there(2) > 0, there(1)),
    "copy of indices to the device": lambda: there(2)[torch.tensor([0])],
    "copy to the device": lambda: here(2).cuda(),
    "copy from the device": lambda: there(2).cpu(),
    "tensor to the device": lambda: torch.tensor(1.0, device="cuda"),
    "repeat_interleave": lambda: there(2).repeat_interleave(there(2).long()),
    "where": lambda: torch.where(there(2) > 0),
}
NOT_WAITING = {
    "arithmetic": lambda: there(2) + 1,
    "a slice": lambda: there(2)[:1],
    "indices of the device": lambda: there(2)[torch.zeros(1, dtype=torch.int64, device="cuda")],
    "a number where a mask is": lambda: there(2).__setitem__(there(2) > 0, 0.0),
    "a choice": lambda: torch.where(there(2) > 0, 1.0, there(2)),
    "filling": lambda: torch.full((2,), 3.0, device="cuda"),
}


@pytest.mark.parametrize("what", WAITING)
def test_waiting_is_counted_with_its_place(devices, what, monkeypatch):
    monkeypatch.setattr(f"{__name__}.there", lambda *shape: torch.zeros(shape, device="cuda"))
    WAITING[what]()
    assert devices.waits == {(what, "tests/pretended_cuda/test_device.py:<lambda>"): 1}


@pytest.mark.parametrize("what", NOT_WAITING)
def test_what_is_queued_is_not_counted(devices, what, monkeypatch):
    monkeypatch.setattr(f"{__name__}.there", lambda *shape: torch.zeros(shape, device="cuda"))
    NOT_WAITING[what]()
    here(2).pin_memory().to("cuda", non_blocking=True)
    assert not devices.waits


def test_autocast_computes_in_16_bits(devices):
    layer = torch.nn.Linear(2, 2).cuda()
    with torch.autocast("cuda", torch.float16):
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") == torch.float16
        assert layer(there(1, 2)).dtype == torch.float16
    with torch.autocast("cuda", enabled=False):
        assert layer(there(1, 2)).dtype == torch.float32


def test_nccl_takes_tensors_of_a_device_only(tmp_path):
    with pretended_cuda(nccl=True):
        dist.init_process_group("nccl", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
        try:
            assert dist.get_backend() == "nccl"
            dist.all_reduce(there(2))
            dist.all_gather_object([None], {"some": "thing"})
            for refused in (
                lambda: dist.all_reduce(here(2)),
                lambda: dist.all_gather([here(2)], there(2)),
                lambda: dist.broadcast(here(2), 0),
            ):
                with pytest.raises(CudaRuleError):
                    refused()
        finally:
            dist.destroy_process_group()


def test_nothing_of_it_stays():
    assert not torch.cuda.is_available()
    assert torch.Generator is type(torch.default_generator)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device="cuda")

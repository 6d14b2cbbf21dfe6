import torch

from hrsa_lightning.modules import throughput
from hrsa_lightning.modules.throughput import Throughput


def test_tokens_of_a_step_over_the_time_to_the_next(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    steps = Throughput()
    steps.start_step()
    steps.count(torch.tensor([3, 1, 4]), [torch.tensor([2, 0]), torch.tensor([1])])
    first = steps.values(torch.device("cpu"), world_size=2)
    assert first["padding_share"] == 1 - 8 / 9
    assert "tokens_per_second" not in first
    assert first["peak_memory_mb"] > 50
    steps.start_step()
    steps.count(torch.tensor([5]), [torch.tensor([0])])
    second = steps.values(torch.device("cpu"), world_size=2)
    assert second["tokens_per_second"] == 2 * 8 / 2.0
    assert second["padding_share"] == 0

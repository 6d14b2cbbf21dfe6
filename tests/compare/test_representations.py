import pytest
import torch
from safetensors.torch import load_file

from hrsa_lightning.compare.representations import RepresentationWriter, StoredRepresentations
from hrsa_lightning.modules.throughput import peak_memory
from tests.allocations import reset_peak_memory


def test_rows_of_any_order_come_back_as_one_matrix_that_safetensors_reads(tmp_path):
    first, second = torch.randn(3, 5), torch.randn(2, 5)
    writer = RepresentationWriter(tmp_path / "a", ["layer_0", "output"])
    writer.add({"layer_0": second, "output": second[:, :2].bfloat16()}, [(3, 1), (4, 1)])
    assert not (tmp_path / "a" / "representations.json").exists()
    swapped = first[[2, 0, 1]]
    writer.add({"layer_0": swapped, "output": swapped[:, :2].bfloat16()}, [(2, 1), (0, 2)])
    writer.finish({"model": "x"})
    found = StoredRepresentations(tmp_path / "a")
    whole = torch.cat([first, second])
    assert torch.equal(found.rows("layer_0"), whole)
    assert torch.equal(found.rows("output"), whole[:, :2].bfloat16().float())
    assert torch.equal(load_file(tmp_path / "a" / "layer_0.safetensors")["rows"], whole)
    assert found.layers == ["layer_0", "output"]


def test_what_is_abandoned_or_cut_off_does_not_count(tmp_path):
    writer = RepresentationWriter(tmp_path / "a", ["layer_0"])
    writer.add({"layer_0": torch.ones(2, 2)}, [(0, 2)])
    writer.abandon()
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "layer_0.safetensors").write_bytes(b" " * 300)
    writer = RepresentationWriter(tmp_path / "a", ["layer_0"])
    writer.add({"layer_0": torch.zeros(1, 2)}, [(0, 1)])
    writer.finish({})
    assert StoredRepresentations(tmp_path / "a").rows("layer_0").shape == (1, 2)


@pytest.mark.parametrize("layers", [8])
def test_memory_does_not_grow_with_what_is_written_or_opened(tmp_path, layers):
    names = [f"layer_{index}" for index in range(layers)]
    batch = torch.ones(1024, 512)  # 2 MiB
    reset_peak_memory()
    before = peak_memory(batch.device)
    writer = RepresentationWriter(tmp_path / "a", names)
    for start in range(0, 8192, 1024):
        writer.add(dict.fromkeys(names, batch), [(start, 1024)])
    writer.finish({})
    found = StoredRepresentations(tmp_path / "a")
    assert all(len(found.rows(layer)) == 8192 for layer in found.layers)
    grown = (peak_memory(batch.device) - before) / 2**20
    assert grown < 32, f"{grown} MiB for 128 MiB of rows"

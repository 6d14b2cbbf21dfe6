"""What cannot be loaded on the CPU is loaded on the device that this process trains on."""

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from transformers import AutoModel

from hrsa_lightning.config import load_config
from hrsa_lightning.config.build import build_arms, build_trainer
from hrsa_lightning.errors import BackboneError
from hrsa_lightning.models import backbone, load_backbone
from tests.pretended_cuda.device import pretended_cuda
from tests.tiny import make_backbone

SLURM = {
    **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": "7"},
    **{"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train"},
}
TORCHRUN = {
    **{"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
    **{"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    "TORCHELASTIC_RUN_ID": "x",
}


@pytest.fixture
def loaded(monkeypatch):
    """Where weights were loaded to, and where the attention of models was verified."""
    seen = {"loaded": [], "verified": []}

    def load_weights(source, config, **options):
        seen["loaded"].append(options.get("device_map", {"": torch.device("cpu")})[""])
        return AutoModel.from_config(config)

    monkeypatch.setattr(backbone, "_load_weights", load_weights)
    monkeypatch.setattr(
        backbone, "ensure_attention", lambda model, _: seen["verified"].append(model.device)
    )
    monkeypatch.setattr(backbone, "find_spec", lambda name: name)  # bitsandbytes is there
    # A trainer of another rank tells all of Lightning; later tests are rank 0 again.
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
    return seen


def cuda(*numbers):
    return [torch.device("cuda", number) for number in numbers]


def test_flash_attention_is_verified_on_the_device_that_is_named(tmp_path, loaded):
    make_backbone(tmp_path)
    with pretended_cuda(num_devices=3):
        torch.cuda.set_device(2)
        for device in ("cuda:1", torch.device("cuda", 0), "cuda", None):
            model = load_backbone(tmp_path, attn_implementation="flash_attention_2", device=device)
            assert model.device.type == "cpu"
        assert loaded["verified"] == cuda(1, 0, 2, 2)
        with pytest.raises(BackboneError, match="'flash_attention_2' needs a CUDA device, got cpu"):
            load_backbone(tmp_path, attn_implementation="flash_attention_2", device="cpu")


@pytest.mark.parametrize(
    ("environment", "devices", "number"),
    [({}, [1], 1), ({}, [0], 0), (SLURM, 2, 1), (TORCHRUN, 2, 1)],
    ids=["second of two", "first of two", "slurm", "torchrun"],
)
def test_quantized_arms_are_loaded_where_the_rank_trains(
    tmp_path, loaded, environment, devices, number, monkeypatch
):
    folder = make_backbone(tmp_path / "model")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = [f"arms.base.backbone={folder}", "model.quantization=nf4", "arms.sft=null"]
    settings += [f"trainer.devices={devices}", "trainer.accelerator=cuda"]
    config = load_config("quickstart", [*settings, "arms.rlvr=null", "arms.base_seed2=null"])
    with pretended_cuda(num_devices=2, nccl=True):
        trainer = build_trainer(config, tmp_path / "run", [])
        build_arms(config, trainer.strategy.root_device)
    assert loaded["loaded"] == cuda(number)

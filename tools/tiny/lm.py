"""The tiny Qwen2 language model: configuration, pretraining, saving."""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from tiny.tokenizer import MAX_LENGTH, VOCAB_SIZE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """What decides the base model, besides its data."""

    seed: int = 7
    num_tokens: int = 12_288_000
    batch_size: int = 32
    length: int = 128
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-4
    num_warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    num_threads: int = 2
    checkpoint_every: int = 250

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.num_tokens // (self.batch_size * self.length)


def model_config() -> Qwen2Config:
    """Return the architecture: Qwen2 with 1.3 M parameters, tied embeddings."""
    return Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Linear warm-up, then cosine to the final rate."""
    if step < config.num_warmup_steps:
        return config.learning_rate * (step + 1) / config.num_warmup_steps
    progress = (step - config.num_warmup_steps) / (config.num_steps - config.num_warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def pretrain(stream: np.ndarray, config: PretrainConfig, work: Path) -> Qwen2ForCausalLM:
    """Train the base model, resuming from `work/checkpoint.pt` where one exists.

    Args:
        stream: token ids of the whole run, uint16.
        config: the run.
        work: folder for the resumable checkpoint and the loss log.
    """
    torch.set_num_threads(config.num_threads)
    torch.manual_seed(config.seed)
    model = Qwen2ForCausalLM(model_config())
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.95),
    )
    windows = stream[: config.num_steps * config.batch_size * config.length].reshape(
        -1, config.length
    )
    order = np.random.default_rng(config.seed).permutation(len(windows))
    checkpoint = work / "checkpoint.pt"
    first_step = _resume(checkpoint, model, optimizer)
    started = time.monotonic()
    for step in range(first_step, config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        rows = order[step * config.batch_size : (step + 1) * config.batch_size]
        ids = torch.from_numpy(windows[rows].astype(np.int64))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0 or step + 1 == config.num_steps:
            _log_step(work, step + 1, config.num_steps, loss.item(), started, first_step)
        if (step + 1) % config.checkpoint_every == 0:
            _checkpoint(checkpoint, model, optimizer, step + 1)
    return model


def _resume(path: Path, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    logger.info("pretraining resumes at step %d", state["step"])
    return int(state["step"])


def _checkpoint(
    path: Path, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, step: int
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _log_step(
    work: Path, step: int, num_steps: int, loss: float, started: float, first_step: int
) -> None:
    rate = (time.monotonic() - started) / (step - first_step)
    logger.info("pretraining step %d of %d: loss %.3f, %.2f s/step", step, num_steps, loss, rate)
    with (work / "losses.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, "loss": round(loss, 4)}) + "\n")


def save_model(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Write `config.json` and bf16 `model.safetensors` (tied head left out)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config["architectures"] = ["Qwen2ForCausalLM"]
    config["dtype"] = "bfloat16"
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous().clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def load_model(folder: Path) -> Qwen2ForCausalLM:
    """Load a saved model in fp32 (its weights stay bf16-rounded)."""
    model: Qwen2ForCausalLM = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def num_parameters() -> int:
    """Number of distinct parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Qwen2ForCausalLM(model_config()).parameters())


def describe(config: PretrainConfig) -> dict[str, object]:
    """Return the figures that decide the run's outcome, for the record."""
    record = {**asdict(config), "num_steps": config.num_steps}
    del record["checkpoint_every"]
    return record

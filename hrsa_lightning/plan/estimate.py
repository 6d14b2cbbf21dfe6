"""Memory, arithmetic and disk of a recipe, from its workload and its backbones' shapes.

Every figure is an estimate. Formulas: AdamW keeps two moments of the size of the trained weights.
A forward pass takes 2 operations a weight and token (input embedding aside) and 4 x width x hidden
a layer and token in attention; a backward pass takes twice that where all weights are trained, once
where gradients only pass through (LoRA). GradCache and gradient checkpointing each compute a
forward pass again, GradCache for the share of graphs that is not kept.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from hrsa_lightning.config.schema import Config
from hrsa_lightning.models.lora import AUTOCAST_DTYPES
from hrsa_lightning.plan.activations import Backbone, measure_backbone
from hrsa_lightning.plan.monitoring import Monitoring, monitoring_of
from hrsa_lightning.plan.shapes import backbone_config
from hrsa_lightning.plan.workload import Workload

__all__ = ["Estimate", "estimate"]

RUNTIME_BYTES = 10**9
"""Assumed for the CUDA context, kernels and communication buffers of one process."""

NF4_BITS = 4.127
"""Bits of a weight in nf4 with its doubly quantized constants (QLoRA, arXiv 2305.14314, section 3).
"""

AUTO_SHARE = 0.5
"""What `activation_budget: auto` takes of what weights, gradients and optimizer leave free."""

_TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": torch.bfloat16,
}


@dataclass(frozen=True)
class Estimate:
    """What a recipe needs.

    Attributes:
        arms: Sizes of each arm's backbone.
        workload: Examples, steps and tokens.
        monitoring: What the similarity monitors add.
        memory: Bytes on one GPU by part.
        budget: `"auto"` where the activations are to take half of what is free.
        forwards: Forward passes' worth of arithmetic of a step, per forward pass.
        flops: Operations of a step, of all processes and arms.
        loading: Bytes of a node's own memory while its processes read the backbones.
        disk: Bytes by part.
    """

    arms: dict[str, Backbone]
    workload: Workload
    monitoring: Monitoring
    memory: dict[str, float]
    budget: int | str | None
    forwards: float
    flops: float
    loading: float
    disk: dict[str, float] = field(default_factory=dict)

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())

    @property
    def monitor_share(self) -> float:
        """Operations of the monitors, as a share of those of training."""
        return self.monitoring.flops_per_step / self.flops

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the totals."""
        return {
            **asdict(self),
            "total_memory": self.total_memory,
            "total_disk": sum(self.disk.values()),
            "monitor_share": self.monitor_share,
        }


def estimate(config: Config, workload: Workload, device_memory: float | None = None) -> Estimate:
    """Everything that `plan` prints, without loading a weight.

    Args:
        config: The recipe.
        workload: Its examples, steps and texts.
        device_memory: Bytes of one GPU; without it, `activation_budget: auto` is planned as 0.

    Raises:
        BackboneError: A backbone's shape cannot be found out.
        ConfigError: LoRA cannot be put on a backbone as asked.
    """
    arms = _arms(config, workload.width)
    monitoring = monitoring_of(config, arms)
    fixed = _fixed_memory(config, workload, arms, monitoring)
    budget = config.activation_budget
    if budget == "auto":
        held = sum(
            fixed.get(name, 0.0) for name in ("weights", "gradients", "optimizer", "runtime")
        )
        free = 0.0 if device_memory is None else max(0.0, device_memory - held)
        budget = int(AUTO_SHARE * free)
    kept, peak, recomputed = _activations(config, workload, arms, budget)
    forwards = 1 + recomputed + config.model.gradient_checkpointing
    forwards += 2 if config.model.lora is None else 1
    flops = sum(forwards * _forward_flops(arm, workload) for arm in arms.values())
    return Estimate(
        arms=arms,
        workload=workload,
        monitoring=monitoring,
        memory={**fixed, "kept graphs": kept, "graph in work": peak},
        budget=config.activation_budget,
        forwards=forwards,
        flops=flops,
        loading=_loading_bytes(config, arms) * workload.gpus / config.trainer.num_nodes,
        disk=_disk(config, workload, arms, monitoring),
    )


def _arms(config: Config, width: int) -> dict[str, Backbone]:
    precision = config.trainer.precision
    dtype = _weight_dtype(config)
    lora = asdict(config.model.lora) if config.model.lora else None
    size = 4 if precision == "32-true" else 2
    measured: dict[str, Backbone] = {}
    arms = {}
    for name, arm in config.arms.items():
        shape = backbone_config(arm.backbone, arm.revision)
        key = shape.to_json_string()
        if key not in measured:
            measured[key] = measure_backbone(
                shape,
                dtype=dtype,
                lora=lora,
                width=width,
                autocast=AUTOCAST_DTYPES.get(precision),
                dropout_bytes=1 + size,
            )
        arms[name] = measured[key]
    return arms


def _weight_dtype(config: Config) -> torch.dtype:
    return _TRUE.get(config.trainer.precision, _DTYPES[config.model.dtype])


def _loading_bytes(config: Config, arms: dict[str, Backbone]) -> float:
    """Each backbone is read in its own dtype before its frozen weights are cast."""
    size = _weight_dtype(config).itemsize
    uncast = max(arm.num_weights * size - arm.weight_bytes for arm in arms.values())
    return sum(arm.weight_bytes for arm in arms.values()) + max(0, uncast)


def _weight_bytes(config: Config, arm: Backbone) -> float:
    if config.model.quantization is None:
        return arm.weight_bytes
    # Embedding and adapters stay as they are; norms and biases are too few to tell apart.
    kept = arm.num_embedding_weights * torch.finfo(_weight_dtype(config)).bits / 8
    frozen = arm.num_weights - arm.num_trained - arm.num_embedding_weights
    return frozen * NF4_BITS / 8 + kept + arm.trained_bytes


def _chunks(workload: Workload) -> float:
    return max(1.0, workload.rows_per_gpu / workload.chunk_texts)


def _activations(
    config: Config, workload: Workload, arms: dict[str, Backbone], budget: int | None
) -> tuple[float, float, float]:
    """Bytes of kept graphs, of the graph that is computed again, and the share that is.

    With gradient checkpointing a chunk's graph shrinks to its layers' inputs, but one layer's graph
    is there at a time.
    """
    rows, chunk = workload.rows_per_gpu, workload.chunk_texts
    # Under mixed precision the residual stream, which is what checkpointing keeps, has the dtype of
    # the weights.
    size = torch.finfo(_weight_dtype(config)).bits // 8
    checkpointing = config.model.gradient_checkpointing

    def graph(arm: Backbone, texts: float, chunks: float) -> float:
        if not checkpointing:
            return arm.graph_bytes(texts, chunks)
        return arm.checkpointed_bytes(texts, size)

    everything = sum(graph(arm, rows, _chunks(workload)) for arm in arms.values())
    if budget is None or budget >= everything:
        return everything, 0.0, 0.0
    one = max(graph(arm, chunk, 1) for arm in arms.values())
    return float(budget), one, 1 - budget / everything


def _fixed_memory(
    config: Config, workload: Workload, arms: dict[str, Backbone], monitoring: Monitoring
) -> dict[str, float]:
    """Bytes of all but the graphs."""
    shards, copies = _shards(config, workload.gpus)
    trained = sum(arm.trained_bytes for arm in arms.values())
    parts: dict[str, float] = {
        "weights": sum(_weight_bytes(config, arm) for arm in arms.values()) / shards,
        "gradients": trained / shards * copies,
        "optimizer": 2 * trained / shards,
        "loss": _loss_bytes(config, workload, arms),
        "monitor": monitoring.device_bytes,
    }
    if shards > 1:
        parts["gathered layers"] = 2 * max(arm.layer_bytes for arm in arms.values())
    if config.trainer.accelerator != "cpu":
        parts["runtime"] = RUNTIME_BYTES
    return parts


def _shards(config: Config, gpus: int) -> tuple[int, int]:
    """Over how many processes weights are shared out, and copies of the gradients (buckets)."""
    name = str(config.trainer.strategy).lower()
    if any(
        word in name
        for word in ("fsdp", "modelparallel", "model_parallel", "deepspeed", "fullysharded")
    ):
        return gpus, 1
    return 1, 1 if gpus == 1 else 2


def _loss_bytes(config: Config, workload: Workload, arms: dict[str, Backbone]) -> float:
    """Similarities with their gradient and softmax, and gathered passages, of one arm at a time."""
    queries = config.data.batch_size / workload.gpus
    passages = config.data.batch_size * config.data.train_group_size
    widest = max(arm.hidden_size for arm in arms.values())
    return 4.0 * (3 * queries * passages + 2 * passages * widest)


def _forward_flops(arm: Backbone, workload: Workload) -> float:
    matrices = 2 * (arm.num_weights - arm.num_embedding_weights)
    attention = 4 * arm.num_layers * arm.hidden_size * workload.mean_tokens
    return workload.tokens * (matrices + attention)


def _disk(
    config: Config, workload: Workload, arms: dict[str, Backbone], monitoring: Monitoring
) -> dict[str, float]:
    trained = sum(arm.trained_bytes for arm in arms.values())
    downloads = {
        config.arms[name].backbone: 2.0 * arm.num_weights
        for name, arm in arms.items()
        if not config.arms[name].backbone.startswith("embedded:")
    }
    steps = workload.steps or 0
    return {
        "backbones": sum(downloads.values()),
        # One more than is kept: a new checkpoint is complete before an old one goes.
        "checkpoints": 3.0 * trained * (config.checkpoint.keep + 1),
        "result": float(trained),
        "recorded representations": monitoring.recorded_bytes(steps),
    }

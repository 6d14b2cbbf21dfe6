"""What a recipe may say: its sections as dataclasses, with choices and ranges.

Imports no torch and no OmegaConf; `config.py` fills these from YAML and overrides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hrsa_lightning.errors import ConfigError, nearest


@dataclass
class LoRAConfig:
    """Low-rank adapters; names and meaning are peft's."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.1
    target_modules: Any = "all-linear"
    use_rslora: bool = False


@dataclass
class ModelConfig:
    """How every arm turns its backbone into an embedding model.

    `quantization: nf4` keeps frozen weights in 4 bits (QLoRA; a CUDA device and bitsandbytes).
    """

    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    attention: str = "bidirectional"
    pooling: str = "mean"
    normalize: bool = True
    instruction_mask: str = "offsets"
    gradient_checkpointing: bool = False
    quantization: str | None = None
    trust_remote_code: bool = False
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)

    def loading_options(self) -> dict[str, Any]:
        """Arguments of `EmbeddingModel.from_pretrained` that training and loading share."""
        own = ("gradient_checkpointing", "quantization", "lora")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}


@dataclass
class ArmConfig:
    """One backbone; `seed` (default: the run's) draws its adapters and its dropout."""

    backbone: str = "???"
    revision: str | None = None
    seed: int | None = None


@dataclass
class DataConfig:
    """Contrastive pairs. `batch_size` counts queries of all processes together.

    Batches come from one source each. `weights` (one per source) or `source_temperature` (sizes to
    the power of 1 / temperature) say how often; by default each example comes once an epoch.
    """

    train: list[str] = field(default_factory=list)
    batch_size: int = 512
    train_group_size: int = 4
    query_length: int = 512
    passage_length: int = 512
    drop_last: bool = True
    missing_negatives: str = "error"
    weights: list[float] | None = None
    source_temperature: float | None = None
    num_workers: int = 0


@dataclass
class SIGRegConfig:
    """Regularizer towards an isotropic Gaussian, added to the loss with `weight`."""

    weight: float = 0.05
    num_slices: int = 256
    num_knots: int = 17
    max_t: float = 3.0
    seed: int = 0


@dataclass
class LossConfig:
    """Arguments of the classes in `hrsa_lightning.losses`, names and meaning unchanged.

    `name` is infonce or debiased. `symmetric` to `hardness` belong to infonce, `tau_plus` to
    debiased. `matryoshka` lists sizes of embeddings, the full one too where it is wanted.
    """

    name: str = "infonce"
    temperature: float = 0.02
    gather_distributed: bool = True
    mask_duplicates: bool = True
    symmetric: bool = False
    same_side_negatives: bool = False
    false_negative_margin: float | None = None
    hardness: float = 0.0
    tau_plus: float = 0.1
    matryoshka: list[int] | None = None
    matryoshka_weights: list[float] | None = None
    sigreg: SIGRegConfig | None = None


@dataclass
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine or constant schedule."""

    lr: float = 2e-5
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    warmup_ratio: float = 0.03
    schedule: str = "cosine"


@dataclass
class CheckpointConfig:
    """What resuming needs is written every so many optimizer steps; the newest `keep` stay."""

    every_n_train_steps: int = 100
    keep: int = 2


@dataclass
class TrainerConfig:
    """Arguments of `lightning.pytorch.Trainer`, names and meaning unchanged.

    `strategy` may also be fsdp2, or a mapping with `_target_`.
    """

    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    strategy: Any = "auto"
    precision: str = "32-true"
    max_epochs: int | None = 1
    max_steps: int = -1
    max_time: str | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    limit_train_batches: Any = 1.0
    log_every_n_steps: int = 10
    deterministic: Any = None
    enable_progress_bar: bool = True
    profiler: str | None = None


@dataclass
class Config:
    """A whole recipe."""

    name: str = "???"
    description: str = ""
    seed: int = 1016
    output_dir: str = "runs"
    resume: bool = True
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_tokens_per_chunk: int | None = None
    activation_budget: Any = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)


CHOICES: Mapping[str, tuple[str, ...]] = {
    "data.missing_negatives": ("error", "drop"),
    "loss.name": ("infonce", "debiased"),
    "model.attention": ("bidirectional", "causal"),
    "model.attn_implementation": ("sdpa", "eager", "flash_attention_2"),
    "model.dtype": ("float32", "bfloat16", "float16", "auto"),
    "model.instruction_mask": ("offsets", "authors"),
    "model.pooling": ("mean", "weighted_mean", "last", "first"),
    "optimizer.schedule": ("cosine", "constant"),
}

_POSITIVE = (
    "checkpoint.every_n_train_steps",
    "data.batch_size",
    "data.passage_length",
    "data.query_length",
    "data.train_group_size",
    "loss.temperature",
    "optimizer.lr",
)


def check_values(config: Config) -> None:
    """Refuse values outside their choices and ranges, in words that name the key."""
    if not config.arms:
        raise ConfigError("arms: at least one arm is required, such as arms.base.backbone=PATH")
    for name in config.arms:
        if not name.isidentifier():
            raise ConfigError(f"arms.{name}: a name may have letters, digits and underscores only")
    for key, known in CHOICES.items():
        value = _value_at(config, key)
        if value not in known:
            raise ConfigError(
                f"{key}: expected one of {', '.join(known)}; got '{value}'."
                f"{nearest(str(value), known)}"
            )
    for key in _POSITIVE:
        if not _value_at(config, key) > 0:
            raise ConfigError(f"{key}: expected a value above 0, got {_value_at(config, key)}")
    if not 0 <= config.optimizer.warmup_ratio < 1:
        raise ConfigError(
            f"optimizer.warmup_ratio: expected a share from 0 to below 1,"
            f" got {config.optimizer.warmup_ratio}"
        )
    if len(config.optimizer.betas) != 2:
        raise ConfigError(f"optimizer.betas: expected two values, got {config.optimizer.betas}")
    _check_half_precision(config)
    _check_strategy(config.trainer.strategy)
    if config.model.quantization not in (None, "nf4"):
        raise ConfigError(
            f"model.quantization: expected null or nf4, got {config.model.quantization}"
        )
    if config.model.quantization and config.model.lora is None:
        raise ConfigError("model.quantization: trains adapters only; expected model.lora, got null")
    _check_data(config.data)
    _check_loss(config.loss)


def _check_half_precision(config: Config) -> None:
    """AdamW's moments have the dtype of the weights, and float16 ends at 2^-24.

    The second moment of a gradient g is (1 - beta2) g^2. Where that is 0, eps alone divides the
    first moment: 0 / 0 with the default, which vanishes too, and a huge step if it is small.
    """
    model, optimizer = config.model, config.optimizer
    trained_in_half = model.dtype == "float16" and model.lora is None
    if config.trainer.precision != "16-true" and not trained_in_half:
        return
    least = (2**-24 / (1 - optimizer.betas[1])) ** 0.5
    if optimizer.eps < least:
        raise ConfigError(
            f"optimizer.eps: expected at least {least:.1g} for float16 weights (moments vanish"
            f" below), got {optimizer.eps:g}; bf16-true and 16-mixed take any"
        )


_SHARDED_OTHERWISE = ("deepspeed", "fsdp", "modelparallel", "xlafsdp")


def _check_strategy(strategy: Any) -> None:
    """Refuse strategies that shard weights in another way than `fsdp2`.

    They write checkpoints of their own, which a run could not resume from, and clip gradients of
    all arms together.
    """
    target = strategy.get("_target_", "") if isinstance(strategy, Mapping) else strategy
    name = str(target).rpartition(".")[2].lower().replace("_", "")
    if name != "fsdp2" and name.startswith(_SHARDED_OTHERWISE):
        raise ConfigError(
            f"trainer.strategy: expected fsdp2 to shard weights, got {target}, whose checkpoints"
            " cannot be resumed here"
        )


def _check_data(data: DataConfig) -> None:
    if not data.train:
        raise ConfigError("data.train: at least one file of contrastive pairs is required")
    if data.weights is not None and data.source_temperature is not None:
        raise ConfigError("data.weights: expected null beside data.source_temperature; both set it")
    if data.weights is not None:
        if len(data.weights) != len(data.train):
            raise ConfigError(
                f"data.weights: expected one per file of data.train, {len(data.train)},"
                f" got {len(data.weights)}"
            )
        if min(data.weights) < 0 or not sum(data.weights) > 0:
            raise ConfigError(
                f"data.weights: expected none below 0 and one above, got {data.weights}"
            )
    if data.source_temperature is not None and not data.source_temperature > 0:
        raise ConfigError(
            f"data.source_temperature: expected a value above 0, got {data.source_temperature}"
        )


_LOSS_KEYS = {
    "infonce": ("symmetric", "same_side_negatives", "false_negative_margin", "hardness"),
    "debiased": ("tau_plus",),
}
"""Keys of one loss that the other does not have."""


def _check_loss(loss: LossConfig) -> None:
    untouched = LossConfig()
    for name, keys in _LOSS_KEYS.items():
        for key in keys:
            if loss.name != name and getattr(loss, key) != getattr(untouched, key):
                raise ConfigError(f"loss.{key}: belongs to loss.name={name}, got {loss.name}")
    if not 0 <= loss.tau_plus < 1:
        raise ConfigError(f"loss.tau_plus: expected a share from 0 to below 1, got {loss.tau_plus}")
    if loss.hardness < 0:
        raise ConfigError(f"loss.hardness: expected a value of at least 0, got {loss.hardness}")
    if loss.matryoshka is not None and (not loss.matryoshka or min(loss.matryoshka) < 1):
        raise ConfigError(f"loss.matryoshka: expected sizes above 0, got {loss.matryoshka}")
    if loss.matryoshka_weights is not None and len(loss.matryoshka_weights) != len(
        loss.matryoshka or ()
    ):
        raise ConfigError(
            f"loss.matryoshka_weights: expected one per size of loss.matryoshka,"
            f" {len(loss.matryoshka or ())}, got {len(loss.matryoshka_weights)}"
        )
    if loss.sigreg is not None and not loss.sigreg.weight > 0:
        raise ConfigError(
            f"loss.sigreg.weight: expected a value above 0, got {loss.sigreg.weight}"
            " (loss.sigreg=null switches it off)"
        )


def _value_at(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value

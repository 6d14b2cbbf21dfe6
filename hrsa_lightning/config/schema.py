"""What a recipe may say: its sections as dataclasses, and beside each key what it may hold.

Imports no torch and no OmegaConf; `config.load` fills these from YAML and overrides, and checks
every key against its `Rule` in one place.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from hrsa_lightning.data.entries import PairEntry
from hrsa_lightning.errors import ConfigError, DataError, cut, nearest, shown
from hrsa_lightning.io.files import NAME_RULE, is_name


@dataclass(frozen=True)
class Rule:
    """What the value of a key, or each item of its list, may be beyond its type.

    `null` is not asked: where the type allows it, it is allowed.

    Attributes:
        expected: The rule in words, for the message.
        accepts: Whether a value of the key's type obeys it.
        known: The values, where they are words to choose from.
    """

    expected: str
    accepts: Callable[[Any], object]
    known: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        """`expected ..., got ...`, or `None` for a value that obeys the rule."""
        if self.accepts(value):
            return None
        hint = nearest(value, self.known) if isinstance(value, str) else ""
        return f"expected {self.expected}, got {shown(value)}{hint and '.' + hint}"


def within(interval: str) -> Rule:
    """Finite numbers of an interval such as `[0, 1)`; an end in square brackets belongs to it.

    Example:
        >>> within("[0, 1)").problem(1.0)
        'expected a value in [0, 1), got 1.0'
    """
    low, high = map(float, interval[1:-1].split(","))

    def accepts(value: Any) -> bool:
        if not isinstance(value, int | float):
            return False
        above = value >= low if interval[0] == "[" else value > low
        return above and (value <= high if interval[-1] == "]" else value < high)

    return Rule(f"a value in {interval}", accepts)


def one_of(*known: str) -> Rule:
    """One of these words."""
    return Rule(" or ".join(known), known.__contains__, known)


def _is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_words(value: Any) -> bool:
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and word for word in words)


def _is_devices(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_whole(item, 0, 4096) for item in value)
    if isinstance(value, str):
        return value == "auto" or re.fullmatch(r"-1|\d+(,\d+)*", value) is not None
    return value == -1 or _is_whole(value, 1, 4096)


def _is_batch_limit(value: Any) -> bool:
    return _is_whole(value, 1) or (isinstance(value, float) and 0 < value <= 1)


def _is_path(text: Any) -> bool:
    if not isinstance(text, str):
        return False
    longest = max(len(part.encode()) for part in text.split("/"))
    return 0 < len(text) <= 4000 and longest <= 255


_PRECISION = one_of(
    *("32-true", "32", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true", "64", "bf16"),
    *("16", "transformer-engine", "transformer-engine-float16"),
)
_DEVICES = Rule("auto, -1, a number of devices or a list of them", _is_devices)
_STRATEGY = Rule("a name or a mapping with _target_", lambda value: isinstance(value, str | dict))
_STEPS = Rule("-1 or a number of steps from 1", lambda n: n == -1 or _is_whole(n, 1, 10**15))
_TIME = Rule(
    "DAYS:HOURS:MINUTES:SECONDS, such as 00:12:00:00",
    re.compile(r"\d{1,5}:\d\d?:\d\d?:\d\d?").fullmatch,
)
_BATCHES = Rule("a share in (0, 1] or a number of batches from 1", _is_batch_limit)
_WARN = Rule("true, false or warn", lambda value: value in (True, False, "warn"))
_BUDGET = Rule("bytes or auto", lambda value: value == "auto" or _is_whole(value, 0))
_SEED = within("[0, 4294967295]")
_LENGTH = within("[1, 1e7]")
_TEXT = Rule("at most 10000 characters", lambda text: isinstance(text, str) and len(text) <= 10000)
_PATH = Rule("a path or name, its parts of at most 255 bytes", _is_path)
_NAME = Rule(NAME_RULE, is_name)
_ENTRY = Rule(
    "a path or a mapping with path",
    lambda entry: isinstance(entry, dict) or (isinstance(entry, str) and _is_path(entry)),
)


def _key(default: Any, rule: Rule) -> Any:
    """A field of a recipe with its rule; a list is copied for each recipe."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"rule": rule})
    return field(default=default, metadata={"rule": rule})


@dataclass
class LoRAConfig:
    """Low-rank adapters; names and meaning are peft's."""

    r: int = _key(16, within("[1, 65536]"))
    lora_alpha: int = _key(32, within("[1, 1e6]"))
    lora_dropout: float = _key(0.1, within("[0, 1)"))
    target_modules: Any = _key("all-linear", Rule("a name or a list of names", _is_words))
    use_rslora: bool = False


@dataclass
class ModelConfig:
    """How every arm turns its backbone into an embedding model.

    `quantization: nf4` keeps frozen weights in 4 bits (QLoRA; a CUDA device and bitsandbytes).
    """

    dtype: str = _key("float32", one_of("float32", "bfloat16", "float16", "auto"))
    attn_implementation: str = _key("sdpa", one_of("sdpa", "eager", "flash_attention_2"))
    attention: str = _key("bidirectional", one_of("bidirectional", "causal"))
    pooling: str = _key("mean", one_of("mean", "weighted_mean", "last", "first"))
    normalize: bool = True
    instruction_mask: str = _key("offsets", one_of("offsets", "authors"))
    gradient_checkpointing: bool = False
    quantization: str | None = _key(None, one_of("nf4"))
    trust_remote_code: bool = False
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)

    def loading_options(self) -> dict[str, Any]:
        """Arguments of `EmbeddingModel.from_pretrained` that training and loading share."""
        own = ("gradient_checkpointing", "quantization", "lora")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}


@dataclass
class ArmConfig:
    """One backbone; `seed` (default: the run's) draws adapters, dropout, batches and negatives.

    An arm with a seed of its own trains as it would alone in a run with this seed.
    """

    backbone: str = _key("???", _PATH)
    revision: str | None = _key(None, _PATH)
    seed: int | None = _key(None, _SEED)


@dataclass
class DataConfig:
    """Contrastive pairs: paths, or mappings with the keys of `hrsa_lightning.data.PairEntry`.

    `limit` takes the first so many pairs of each source. `batch_size` counts queries of all
    processes together.

    Batches come from one source each. `weights` (one per source) or `source_temperature` (sizes to
    the power of 1 / temperature) say how often; by default each example comes once an epoch.
    """

    train: list[Any] = _key([], _ENTRY)
    limit: int | None = _key(None, within("[1, 1e9]"))
    batch_size: int = _key(512, within("[1, 1e9]"))
    train_group_size: int = _key(4, within("[1, 1e4]"))
    query_length: int = _key(512, _LENGTH)
    passage_length: int = _key(512, _LENGTH)
    drop_last: bool = True
    missing_negatives: str = _key("error", one_of("error", "drop"))
    weights: list[float] | None = _key(None, within("[0, 1e9]"))
    source_temperature: float | None = _key(None, within("(0, 1e9]"))
    num_workers: int = _key(0, within("[0, 1024]"))

    def source_weights(self) -> list[float] | None:
        """`weights`, or those that the sources have of their own."""
        own = [entry.get("weight") if isinstance(entry, dict) else None for entry in self.train]
        if self.weights is not None or own == [None] * len(own):
            return self.weights
        return [1.0 if weight is None else float(weight) for weight in own]


@dataclass
class SIGRegConfig:
    """Regularizer towards an isotropic Gaussian, added to the loss with `weight`."""

    weight: float = _key(0.05, within("(0, 1e6]"))
    num_slices: int = _key(256, within("[1, 1e6]"))
    num_knots: int = _key(17, within("[2, 1e4]"))
    max_t: float = _key(3.0, within("(0, 1000]"))
    seed: int = _key(0, _SEED)


@dataclass
class AlignmentConfig:
    """Linear CKA with a reference's embeddings of the batch, added to the loss with `weight`.

    `reference` is initial (each arm's own start), `arm:NAME` (another arm, as it is in the same
    step), or a backbone that stays frozen. `push` stops at the level of unrelated embeddings.
    """

    reference: str = _key("initial", _PATH)
    weight: float = _key(1.0, within("(0, 1e6]"))
    direction: str = _key("pull", one_of("pull", "push"))
    debiased: bool = True
    standardize: bool = False


def is_backbone(reference: str) -> bool:
    """Whether a reference of `loss.alignment` is a model to load."""
    return reference != "initial" and not reference.startswith("arm:")


@dataclass
class LossConfig:
    """Arguments of the classes in `hrsa_lightning.losses`, names and meaning unchanged.

    `name` is infonce or debiased. `symmetric` to `joint` belong to infonce, `tau_plus` to
    debiased. `matryoshka` lists sizes of embeddings, the full one too where it is wanted.
    """

    name: str = _key("infonce", one_of("infonce", "debiased"))
    temperature: float = _key(0.02, within("[0.0001, 1000]"))
    gather_distributed: bool = True
    mask_duplicates: bool = True
    symmetric: bool = False
    same_side_negatives: bool = False
    false_negative_margin: float | None = _key(None, within("[-2, 2]"))
    hardness: float = _key(0.0, within("[0, 1000]"))
    joint: bool = False
    tau_plus: float = _key(0.1, within("[0, 1)"))
    matryoshka: list[int] | None = _key(None, within("[1, 1e6]"))
    matryoshka_weights: list[float] | None = _key(None, within("[0, 1e6]"))
    sigreg: SIGRegConfig | None = None
    alignment: AlignmentConfig | None = None


@dataclass
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine or constant schedule."""

    lr: float = _key(2e-5, within("(0, 1000]"))
    weight_decay: float = _key(0.05, within("[0, 1000]"))
    betas: list[float] = _key([0.9, 0.999], within("[0, 1)"))
    eps: float = _key(1e-8, within("(0, 1]"))
    warmup_ratio: float = _key(0.03, within("[0, 1)"))
    schedule: str = _key("cosine", one_of("cosine", "constant"))


@dataclass
class CheckpointConfig:
    """What resuming needs is written every so many optimizer steps; the newest `keep` stay."""

    every_n_train_steps: int = _key(100, within("[1, 1e9]"))
    keep: int = _key(2, within("[-1, 1e9]"))


@dataclass
class TrainerConfig:
    """Arguments of `lightning.pytorch.Trainer`, names and meaning unchanged.

    `strategy` may also be fsdp2, or a mapping with `_target_`.
    """

    accelerator: str = _key("auto", _PATH)
    devices: Any = _key("auto", _DEVICES)
    num_nodes: int = _key(1, within("[1, 1e5]"))
    strategy: Any = _key("auto", _STRATEGY)
    precision: str = _key("32-true", _PRECISION)
    max_epochs: int | None = _key(1, within("[1, 1e9]"))
    max_steps: int = _key(-1, _STEPS)
    max_time: str | None = _key(None, _TIME)
    accumulate_grad_batches: int = _key(1, within("[1, 1e9]"))
    gradient_clip_val: float | None = _key(None, within("[0, 1e9]"))
    limit_train_batches: Any = _key(1.0, _BATCHES)
    log_every_n_steps: int = _key(10, within("[0, 1e9]"))
    deterministic: Any = _key(None, _WARN)
    enable_progress_bar: bool = True
    profiler: str | None = _key(None, one_of("simple", "advanced", "pytorch"))


@dataclass
class Config:
    """A whole recipe."""

    name: str = _key("???", _NAME)
    description: str = _key("", _TEXT)
    seed: int = _key(1016, _SEED)
    output_dir: str = _key("runs", _PATH)
    resume: bool = True
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_tokens_per_chunk: int | None = _key(None, within("[1, 1e9]"))
    activation_budget: Any = _key(None, _BUDGET)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)

    def seed_of(self, arm: str) -> int:
        """The seed of an arm's adapters, dropout and batches: its own, or the run's."""
        own = self.arms[arm].seed
        return self.seed if own is None else own


NO_ARM = frozenset(
    re.findall(
        r"\w+",
        """
        T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu
        cuda double dump_patches eval extra_repr float forward get_buffer get_extra_state
        get_parameter get_submodule half initial ipu items keys load_state_dict modules mtia
        named_buffers named_children named_modules named_parameters pairs parameters pop
        register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
        register_full_backward_hook register_full_backward_pre_hook
        register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module
        register_parameter register_state_dict_post_hook register_state_dict_pre_hook
        requires_grad_ set_extra_state set_submodule share_memory smart_apply state_dict to to_empty
        train training type update values xpu zero_grad
        """,
    )
)
"""Names no arm can have: attributes of `nn.ModuleDict`, one by transformers; kinds of reference."""

_LOSS_KEYS = {
    "infonce": ("symmetric", "same_side_negatives", "false_negative_margin", "hardness", "joint"),
    "debiased": ("tau_plus",),
}
"""Keys of one loss that the other does not have."""


def check_together(config: Config) -> None:
    """Refuse values that are right alone and wrong beside each other.

    Raises:
        ConfigError: The message names the key.
    """
    data, loss, model = config.data, config.loss, config.model
    if not config.arms:
        raise ConfigError("arms: at least one arm is required, such as arms.base.backbone=PATH")
    for name in config.arms:
        if not is_name(name, dots=False) or name in NO_ARM or name.startswith("__"):
            reserved = "; this word is reserved" if is_name(name, dots=False) else " without dots"
            raise ConfigError(f"arms.{cut(name)}: expected {NAME_RULE}{reserved}")
    for name in config.callbacks:
        if not is_name(name, dots=False):
            raise ConfigError(f"callbacks.{cut(name)}: expected {NAME_RULE} without dots")
    if len(config.optimizer.betas) != 2:
        raise ConfigError(f"optimizer.betas: expected two values, got {config.optimizer.betas}")
    _check_half_precision(config)
    _check_strategy(config.trainer.strategy)
    if model.quantization and model.lora is None:
        raise ConfigError("model.quantization: trains adapters only; expected model.lora, got null")
    if not data.train:
        raise ConfigError("data.train: at least one file of contrastive pairs is required")
    for number, entry in enumerate(data.train):
        try:
            PairEntry.of(entry)
        except DataError as error:
            raise ConfigError(f"data.train[{number}].{error}") from None
    weights = data.source_weights()
    if weights != data.weights and data.source_temperature is not None:
        raise ConfigError("data.source_temperature: expected null where entries have a weight")
    if data.weights is not None:
        if data.source_temperature is not None:
            raise ConfigError(
                "data.weights: expected null beside data.source_temperature; both set it"
            )
        if len(data.weights) != len(data.train):
            raise ConfigError(
                f"data.weights: expected one per file of data.train, {len(data.train)},"
                f" got {len(data.weights)}"
            )
        if not any(data.weights):
            raise ConfigError(f"data.weights: expected one above 0, got {shown(data.weights)}")
    _check_loss(loss)
    _check_alignment(config)


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
    target = strategy.get("_target_", "") if isinstance(strategy, dict) else strategy
    name = str(target).rpartition(".")[2].lower().replace("_", "")
    if name != "fsdp2" and name.startswith(_SHARDED_OTHERWISE):
        raise ConfigError(
            f"trainer.strategy: expected fsdp2 to shard weights, got {target}, whose checkpoints"
            " cannot be resumed here"
        )


def _check_loss(loss: LossConfig) -> None:
    default = LossConfig()
    for name, keys in _LOSS_KEYS.items():
        for key in keys:
            if loss.name != name and getattr(loss, key) != getattr(default, key):
                raise ConfigError(f"loss.{key}: belongs to loss.name={name}, got {loss.name}")
    if loss.joint and not loss.symmetric:
        raise ConfigError("loss.joint: expected loss.symmetric=true beside it, got false")
    if loss.matryoshka is not None and not loss.matryoshka:
        raise ConfigError("loss.matryoshka: expected at least one size, got none")
    weights = loss.matryoshka_weights
    if weights is not None and len(weights) != len(loss.matryoshka or ()):
        raise ConfigError(
            f"loss.matryoshka_weights: expected one per size of loss.matryoshka,"
            f" {len(loss.matryoshka or ())}, got {len(weights)}"
        )
    if weights is not None and not any(weights):
        raise ConfigError(f"loss.matryoshka_weights: expected one above 0, got {shown(weights)}")


def _check_alignment(config: Config) -> None:
    options = config.loss.alignment
    if options is None:
        return
    if options.reference.startswith("arm:"):
        others = [name for name in config.arms if f"arm:{name}" != options.reference]
        if len(others) != len(config.arms) - 1 or not others:
            known = " or ".join(f"arm:{name}" for name in config.arms) if others else "another arm"
            raise ConfigError(
                f"loss.alignment.reference: expected {cut(known)}, got {shown(options.reference)}"
            )
    texts = config.data.batch_size * (1 + config.data.train_group_size)
    if texts < 4:
        raise ConfigError(f"loss.alignment: expected 4 texts or more in a batch, got {texts}")

"""Memory of a recipe, from the shapes of its backbones and the lengths of its texts.

Every figure is an estimate. AdamW keeps two moments of the size of the trained weights. GradCache
keeps the graphs of texts while its budget lasts, and has one chunk's graph beside them otherwise.
"""

import itertools
import math
import random
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from hrsa_lightning.config.schema import Config
from hrsa_lightning.data.entries import PairEntry
from hrsa_lightning.data.pairs import sample_pairs
from hrsa_lightning.errors import BackboneError, ConfigError, DataError
from hrsa_lightning.io.files import exists
from hrsa_lightning.io.resources import resolve_path
from hrsa_lightning.models.chunks import AUTO_SHARE, length_sorted_chunks
from hrsa_lightning.models.lora import AUTOCAST_DTYPES
from hrsa_lightning.plan.backbone import Backbone, backbone_config, measure_backbone
from hrsa_lightning.similarity.layers import default_layers, select_layers

RUNTIME_BYTES = 10**9
"""Assumed for the CUDA context, kernels and communication buffers of one process."""

NF4_BITS = 4.127
"""Bits of a weight in nf4 with its doubly quantized constants (QLoRA, arXiv 2305.14314, section 3).
"""

CHARACTERS_PER_TOKEN = 4
"""Assumed where the length of a text is estimated from its characters (English, 32 k and more)."""

_SAMPLE = 400
_NUM_BATCHES = 4
_DEFAULT_PROBES = 512
_TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
_DTYPES = {"float32": torch.float32, "float16": torch.float16}
_SHARDING = ("fsdp", "modelparallel", "model_parallel", "deepspeed", "fullysharded")


@dataclass(frozen=True)
class Workload:
    """The texts of one run.

    Attributes:
        processes: How many train.
        steps: Optimizer steps, or `None` where they follow from an unknown number of examples.
        texts: Queries and passages of a step, of all processes.
        mean_tokens: Tokens of a text, on average.
        tokens_are: Where `mean_tokens` comes from, in words.
        padded_tokens: Tokens of a step on one process, padded in chunks, in the source whose texts
            are longest: batches come from one source each, and memory is that of the largest.
        width: Tokens of the longest row.
        chunk_texts: Rows of that width in a chunk, at most those of a process.
    """

    processes: int
    steps: int | None
    texts: int
    mean_tokens: float
    tokens_are: str
    padded_tokens: float
    width: int
    chunk_texts: int

    @property
    def tokens(self) -> float:
        """Tokens of a step, of all processes."""
        return self.texts * self.mean_tokens

    @property
    def rows(self) -> float:
        """Texts of a step on one process, in rows of full width."""
        return self.padded_tokens / self.width


@dataclass(frozen=True)
class Monitoring:
    """Memory of the monitors of a recipe, of which one evaluates at a time.

    Attributes:
        probes: Texts of the largest probe set.
        layers: Layers that are compared, the output included.
        device_bytes: On one GPU, during an evaluation.
        host_bytes: Representations of live models and references, in the computer's memory.
        start_bytes: Those of the start, which checkpoints hold.
    """

    probes: int = 0
    layers: int = 0
    device_bytes: float = 0.0
    host_bytes: float = 0.0
    start_bytes: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a recipe needs.

    Attributes:
        arms: Sizes of each arm's backbone.
        assumed: Arms whose backbone is not here, and of which arm they have the shape.
        workload: Steps and texts.
        monitoring: What the monitors add.
        memory: Bytes on one GPU, or of one process on CPUs, by purpose.
    """

    arms: dict[str, Backbone]
    assumed: dict[str, str]
    workload: Workload
    monitoring: Monitoring
    memory: dict[str, float]

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the total."""
        return {**asdict(self), "total_memory": self.total_memory}


def estimate(
    config: Config,
    workload: Workload,
    device_memory: float | None = None,
    online: bool = False,
) -> Estimate:
    """Everything that `plan` prints, without loading a weight.

    Args:
        config: The recipe.
        workload: Its steps and texts.
        device_memory: Bytes of one GPU, without which `activation_budget: auto` is planned as 0; on
            a CPU the default is what is free now.
        online: Whether the hub may be asked for shapes that are not known.

    Raises:
        BackboneError: A backbone's shape cannot be found out.
        ConfigError: LoRA cannot be put on a backbone as asked.
    """
    arms, assumed = _arms(config, workload.width, online)
    on_cpu = config.trainer.accelerator == "cpu"
    if on_cpu and device_memory is None:
        device_memory = float(psutil.virtual_memory().available)
    monitoring = _monitoring(config, arms)
    shards = workload.processes if _is_sharded(config) else 1
    copies = 2 if workload.processes > shards else 1  # DDP has buckets beside the gradients
    trained = sum(arm.trained_bytes for arm in arms.values())
    memory = {
        "weights": _all_weight_bytes(config, arms) / shards,
        "gradients": trained / shards * copies,
        "optimizer": 2 * trained / shards,
    }
    # On a CPU this process, with the same libraries, is what every process takes to begin with.
    memory["runtime"] = float(psutil.Process().memory_info().rss) if on_cpu else RUNTIME_BYTES
    if on_cpu:
        memory["representations"] = monitoring.host_bytes
        memory["checkpoint copy"] = 3 * trained + monitoring.start_bytes
    budget = config.activation_budget
    if budget == "auto":
        held = sum(memory.values())
        free = 0.0 if device_memory is None else max(0.0, device_memory - held)
        budget = int(AUTO_SHARE * free)
    if shards > 1:
        memory["gathered layers"] = 2 * max(a.weight_bytes / a.num_layers for a in arms.values())
    memory |= _graphs(config, workload, arms, budget)
    memory["loss"] = _loss_bytes(config, workload, arms)
    memory["monitor"] = monitoring.device_bytes
    return Estimate(arms, assumed, workload, monitoring, memory)


def workload_of(
    config: Config, examples: int | None = None, text_tokens: float | None = None
) -> Workload:
    """Count what the recipe asks for.

    Raises:
        ConfigError: The batch does not divide over the processes, or devices make no number.
    """
    data = config.data
    processes = _count_processes(config)
    if data.batch_size % processes:
        raise ConfigError(
            f"data.batch_size: {data.batch_size} queries do not divide over {processes} processes"
        )
    width = max(data.query_length, data.passage_length)
    texts = data.batch_size * (1 + data.train_group_size)
    if text_tokens is None:
        mean, padded, tokens_are = _estimate_tokens(config, processes)
    else:
        mean, tokens_are = min(text_tokens, width), "as given"
        padded = texts * mean / processes
    limit = config.max_tokens_per_chunk
    rows = math.ceil(padded / width)
    return Workload(
        processes=processes,
        steps=_count_steps(config, examples),
        texts=texts,
        mean_tokens=mean,
        tokens_are=tokens_are,
        padded_tokens=padded,
        width=width,
        chunk_texts=rows if limit is None else min(rows, max(1, limit // width)),
    )


def _is_sharded(config: Config) -> bool:
    return any(word in str(config.trainer.strategy).lower() for word in _SHARDING)


def _arms(config: Config, width: int, online: bool) -> tuple[dict[str, Backbone], dict[str, str]]:
    """Sizes by arm, and which arm (the first) stands for one whose folder is not here."""
    lora = asdict(config.model.lora) if config.model.lora else None
    measured: dict[str, Backbone] = {}
    arms: dict[str, Backbone] = {}
    assumed: dict[str, str] = {}
    for name, arm in config.arms.items():
        try:
            shape = backbone_config(arm.backbone, arm.revision, online)
        except BackboneError:
            if not arms or exists(arm.backbone) or not arm.backbone.startswith((".", "/", "~")):
                raise
            assumed[name] = next(iter(arms))
            arms[name] = arms[assumed[name]]
            continue
        key = shape.to_json_string()
        if key not in measured:
            measured[key] = measure_backbone(
                shape,
                dtype=_weight_dtype(config),
                lora=lora,
                width=width,
                autocast=AUTOCAST_DTYPES.get(config.trainer.precision),
            )
        arms[name] = measured[key]
    return arms, assumed


def _weight_dtype(config: Config) -> torch.dtype:
    named = _DTYPES.get(config.model.dtype, torch.bfloat16)  # auto is what backbones come in
    return _TRUE.get(config.trainer.precision, named)


def _all_weight_bytes(config: Config, arms: Mapping[str, Backbone]) -> float:
    """Of all arms; those of one backbone share what is frozen, but in shards or in four bits."""
    shares = config.model.quantization is None and not _is_sharded(config)
    seen: set[tuple[str, str | None]] = set()
    total = 0.0
    for name, sizes in arms.items():
        backbone = (config.arms[name].backbone, config.arms[name].revision)
        is_shared = shares and backbone in seen
        total += sizes.trained_bytes if is_shared else _weight_bytes(config, sizes)
        seen.add(backbone)
    return total


def _weight_bytes(config: Config, arm: Backbone) -> float:
    if config.model.quantization is None:
        return arm.weight_bytes
    # Embedding and adapters stay as they are; norms and biases are too few to tell apart.
    kept = arm.num_embedding_weights * _weight_dtype(config).itemsize
    frozen = arm.num_weights - arm.num_trained - arm.num_embedding_weights
    return frozen * NF4_BITS / 8 + kept + arm.trained_bytes


def _graphs(
    config: Config, workload: Workload, arms: Mapping[str, Backbone], budget: int | None
) -> dict[str, float]:
    """Bytes of graphs that are kept, and of the chunk that is computed again beside them."""
    rows, chunk = workload.rows, workload.chunk_texts
    # Under mixed precision the residual stream, which is what checkpointing keeps, has the dtype of
    # the weights.
    size = _weight_dtype(config).itemsize

    def graph(arm: Backbone, texts: float, chunks: float) -> float:
        if config.model.gradient_checkpointing:
            return arm.checkpointed_bytes(texts, size)
        return arm.graph_bytes(texts, chunks)

    # Arms have their backward passes one by one, but where forward passes are collective.
    together = sum if _is_sharded(config) else max
    everything = together(graph(arm, rows, max(1.0, rows / chunk)) for arm in arms.values())
    if budget is None or budget >= everything:
        return {"kept graphs": everything}
    one = max(graph(arm, chunk, 1) for arm in arms.values())
    return {"kept graphs": float(budget), "graph of a chunk": one}


def _loss_bytes(config: Config, workload: Workload, arms: Mapping[str, Backbone]) -> float:
    """Similarities with their gradient and softmax, and gathered passages, of one arm at a time."""
    queries = config.data.batch_size / workload.processes
    passages = config.data.batch_size * config.data.train_group_size
    widest = max(arm.hidden_size for arm in arms.values())
    return 4.0 * (3 * queries * passages + 2 * passages * widest)


def _monitoring(config: Config, arms: Mapping[str, Backbone]) -> Monitoring:
    """Of the callbacks of the recipe that have probes or pairs."""
    found = [
        _monitor(entry, probes, arms)
        for entry in config.callbacks.values()
        if (probes := entry.get("probes", entry.get("pairs"))) is not None
    ]
    return Monitoring(
        probes=max((each.probes for each in found), default=0),
        layers=max((each.layers for each in found), default=0),
        device_bytes=max((each.device_bytes for each in found), default=0.0),
        host_bytes=sum(each.host_bytes for each in found),
        start_bytes=sum(each.start_bytes for each in found),
    )


def _monitor(entry: Mapping[str, Any], texts: Any, arms: Mapping[str, Backbone]) -> Monitoring:
    batch = entry.get("batch_size", 32)
    probes = (_count_lines(texts) if isinstance(texts, str) else None) or _DEFAULT_PROBES
    if entry.get("limit_probe_batches") is not None:
        probes = min(probes, int(entry["limit_probe_batches"]) * batch)
    batch_tokens = batch * float(entry.get("max_length", 128))
    compares = "similarity" in entry["_target_"].lower()
    references = entry.get("reference", "initial")
    references = references if isinstance(references, list) else [references]
    kept = sum(not str(reference).startswith("arm:") for reference in references)
    keeps_start = "initial" in references
    device = host = start = 0.0
    layers = 0
    for arm in arms.values():
        seen = _count_layers(entry.get("layers"), arm.num_layers) if compares else 1
        layers = max(layers, seen)
        # Hidden states of a batch, a few at a time, without a graph.
        device = max(device, 8 * 4 * batch_tokens * arm.hidden_size)
        if compares:
            rows = 4.0 * seen * probes * arm.hidden_size
            host, start = host + rows * (1 + kept), start + rows * keeps_start
            device = max(device, 8.0 * (4 * arm.hidden_size**2 + 2 * probes * arm.hidden_size))
    return Monitoring(probes, layers, device, host, start)


def _count_layers(patterns: Any, num_layers: int) -> int:
    """How many layers patterns mean in a model with a stack of so many."""
    stack = nn.ModuleDict({"layers": nn.ModuleList(nn.Identity() for _ in range(num_layers))})
    chosen = patterns or default_layers(stack)[0]
    try:
        return len(select_layers(stack, chosen, relative=True).names)
    except ConfigError:  # parts of layers, or layers by another name
        named = chosen.values() if isinstance(chosen, Mapping) else chosen
        return sum(num_layers if "*" in pattern else 1 for pattern in named)


def _count_processes(config: Config) -> int:
    """Processes of the recipe; `devices: auto` counts as one a node: another machine may train."""
    devices = config.trainer.devices
    if isinstance(devices, list):
        count = len(devices)
    elif isinstance(devices, int) and devices > 0:
        count = devices
    elif devices == "auto":
        count = 1
    else:
        raise ConfigError(f"trainer.devices: expected a number of devices to plan, got {devices!r}")
    return count * config.trainer.num_nodes


def _count_lines(path: str) -> int | None:
    """Lines of a JSONL file that is there, else `None`."""
    file = Path(resolve_path(path))
    if file.suffix != ".jsonl" or not file.is_file():
        return None
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _count_steps(config: Config, examples: int | None) -> int | None:
    trainer, data = config.trainer, config.data
    if trainer.max_steps > 0:
        return trainer.max_steps
    if examples is None:
        counts = [_count_pairs(PairEntry.of(entry), data.limit) for entry in data.train]
        if None in counts:
            return None
        examples = sum(count or 0 for count in counts)
    exact = examples / data.batch_size
    batches = math.floor(exact) if data.drop_last else math.ceil(exact)
    return (trainer.max_epochs or 1) * max(1, batches // trainer.accumulate_grad_batches)


def _estimate_tokens(config: Config, processes: int) -> tuple[float, float, str]:
    """Mean tokens of a text, and the padded tokens of a step on one process at its largest.

    Both over the first pairs of each file, queries and passages alike.
    """
    data = config.data
    longest = data.query_length + data.train_group_size * data.passage_length
    texts = data.batch_size // processes * (1 + data.train_group_size)
    sources = [lengths for entry in data.train if (lengths := _sampled_lengths(config, entry))]
    if not sources:
        mean = longest / (1 + data.train_group_size)
        return mean, mean * texts, "every text at its longest"
    sample = [length for source in sources for pair in source for length in pair]
    rng = random.Random(0)
    padded = 0
    for source in sources:
        for _ in range(_NUM_BATCHES):
            pairs = rng.choices(source, k=data.batch_size // processes)
            widths = torch.tensor([math.ceil(length) for pair in pairs for length in pair])
            limit = config.max_tokens_per_chunk or sys.maxsize
            chunks = length_sorted_chunks(widths, limit)
            padded = max(padded, sum(len(one) * int(widths[one].max()) for one in chunks))
    num_pairs = sum(map(len, sources))
    words = f"{CHARACTERS_PER_TOKEN} characters a token, over {num_pairs} pairs of the files"
    return sum(sample) / len(sample), float(padded), words


def _count_pairs(entry: PairEntry, limit: int | None) -> int | None:
    """Pairs of a source: as recorded, or counted where that is quick; `None` where it is not."""
    count = entry.rows
    if count is None and entry.filter is None:
        with suppress(DataError):
            count = entry.count()
    most = min(limit or math.inf, entry.limit or math.inf)
    return None if count is None else int(min(count, most))


def _sampled_lengths(config: Config, entry: Any) -> list[list[float]]:
    """Tokens of a query with its instruction and of as many passages as are drawn, by pair."""
    data = config.data
    try:
        pairs = sample_pairs(PairEntry.of(entry), _SAMPLE)
    except DataError:
        return []  # train answers it; here it counts for nothing
    lengths = []
    for pair in pairs:
        query = pair.query if isinstance(pair.query, str) else "".join(pair.query)
        passages = itertools.cycle(pair.negatives or pair.positives)
        drawn = [pair.positives[0], *itertools.islice(passages, data.train_group_size - 1)]
        lengths.append(
            [
                min(len(query) / CHARACTERS_PER_TOKEN, data.query_length),
                *(min(len(text) / CHARACTERS_PER_TOKEN, data.passage_length) for text in drawn),
            ]
        )
    return lengths

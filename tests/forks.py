"""Processes that are forked from one that has imported everything, which takes seconds each time.

That one has done nothing else: it has no threads and no state but its modules.
"""

from multiprocessing import get_context

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("lightning.pytorch", "peft", "transformers.models.qwen2.modeling_qwen2"),
        *("hrsa_lightning.config.build", "hrsa_lightning.modules", "hrsa_lightning.callbacks"),
        *("hrsa_lightning.report.writing", "torch.distributed.fsdp", "torch.utils.tensorboard"),
        *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    ]
)

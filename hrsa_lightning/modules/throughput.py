"""What a training step costs: tokens per second, share of padding, peak memory."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor


class Throughput:
    """Counts tokens of a rank from step to step.

    Rates are those of the step before: from its start to the start of this one, data loading and
    callbacks included.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._seconds: float | None = None
        self._tokens = self._padded_tokens = 0
        self._earlier_tokens = 0

    def start_step(self) -> None:
        """End the counts of the last step and begin those of the next."""
        now = time.perf_counter()
        if self._started is not None:
            self._seconds = now - self._started
        self._started = now
        self._earlier_tokens = self._tokens
        self._tokens = self._padded_tokens = 0

    def count(self, lengths: Tensor, chunks: Sequence[Tensor]) -> None:
        """Count texts that are encoded in chunks."""
        self._tokens += int(lengths.sum())
        self._padded_tokens += sum(len(chunk) * int(lengths[chunk].max()) for chunk in chunks)

    def values(self, device: torch.device, world_size: int) -> dict[str, float]:
        """Numbers to log, to be averaged over ranks.

        Returns:
            `padding_share` of this step, in [0, 1]; `peak_memory_mb` of the process so far, or of
            its CUDA device, in 10^6 bytes; and, from the second step on, `tokens_per_second` of all
            ranks together: real tokens that were encoded, without padding.
        """
        values = {
            "padding_share": 1 - self._tokens / max(1, self._padded_tokens),
            "peak_memory_mb": peak_memory(device) / 1e6,
        }
        if self._seconds is not None:
            values["tokens_per_second"] = world_size * self._earlier_tokens / self._seconds
        return values


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: of tensors on a GPU, of this whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    on_windows = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if on_windows is not None:
        return int(on_windows)
    if sys.platform == "linux":  # its rusage counts what the parent had before this program began
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

"""What memory is used: bytes of tensors that a call allocates, and of a whole process on Linux."""

from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes of tensors that a call has at any one time beside those that were there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    live = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        live += change.nbytes()
        peak = max(peak, live)
    return peak


def reset_peak_memory() -> None:
    """Let `throughput.peak_memory` count from now on; on Linux."""
    Path("/proc/self/clear_refs").write_text("5")

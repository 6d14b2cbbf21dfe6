"""Displacement controls: how similar is the base to itself, moved as far as a tuned backbone?

Both write a complete backbone folder, and ship nowhere.
"""

import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_WEIGHTS = "model.safetensors"
Weights = dict[str, torch.Tensor]


def read_weights(folder: Path) -> Weights:
    """Read the weights of a backbone folder as float64."""
    return {name: value.double() for name, value in load_file(folder / _WEIGHTS).items()}


def relative_change(base: Weights, target: Weights) -> float:
    """Return ||target - base|| / ||base|| over all weights together, in [0, inf).

    >>> relative_change({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 5.0])})
    0.2
    """
    changed = sum(float((target[name] - value).square().sum()) for name, value in base.items())
    return math.sqrt(changed) / _norm(base)


def noise_control(base_dir: Path, target_dir: Path, out_dir: Path, seed: int) -> Path:
    """Write the base plus Gaussian noise, moved as far as the target is from the base.

    The noise has one standard deviation over the whole model.

    Args:
        base_dir: folder of the base backbone.
        target_dir: folder of the backbone whose relative weight change is matched.
        out_dir: folder to write.
        seed: of the noise.

    Returns:
        `out_dir`.
    """
    base = read_weights(base_dir)
    generator = torch.Generator().manual_seed(seed)
    noise = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in sorted(base.items())
    }
    return _write_moved(
        base_dir, base, noise, relative_change(base, read_weights(target_dir)), out_dir
    )


def scaled_control(base_dir: Path, sft_dir: Path, target_dir: Path, out_dir: Path) -> Path:
    """Write the base plus the SFT change scaled to the target's relative weight change.

    Args:
        base_dir: folder of the base backbone.
        sft_dir: folder of the backbone whose direction of change is kept.
        target_dir: folder of the backbone whose relative weight change is matched.
        out_dir: folder to write.

    Returns:
        `out_dir`.
    """
    base, sft = read_weights(base_dir), read_weights(sft_dir)
    direction = {name: sft[name] - value for name, value in base.items()}
    return _write_moved(
        base_dir, base, direction, relative_change(base, read_weights(target_dir)), out_dir
    )


def _norm(weights: Weights) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in weights.values()))


def _write_moved(
    base_dir: Path, base: Weights, direction: Weights, distance: float, out_dir: Path
) -> Path:
    """Write base + scale x direction, the scale giving the wanted relative change in bf16."""
    scale = distance * _norm(base) / _norm(direction)
    # Rounding to bf16 swallows part of a small change and adds noise of its own, so the scale is
    # corrected until the change after rounding is the wanted one.
    for _ in range(8):
        moved = {
            name: (value + scale * direction[name]).to(torch.bfloat16)
            for name, value in base.items()
        }
        reached = relative_change(base, {name: value.double() for name, value in moved.items()})
        scale *= distance / reached
    shutil.copytree(base_dir, out_dir, dirs_exist_ok=True)
    save_file(moved, out_dir / _WEIGHTS, metadata={"format": "pt"})
    return out_dir

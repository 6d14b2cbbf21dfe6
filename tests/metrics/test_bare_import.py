"""`functional` and `metrics` stand on torch and torchmetrics alone."""

import importlib.metadata
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import hrsa_lightning

BARE = """
    import importlib.util
    import torch
    from hrsa_lightning.functional import linear_cka, linear_cka_heatmap, orthogonal_procrustes
    from hrsa_lightning.functional import dimension_correlation, knn_overlap, linear_probe_transfer
    from hrsa_lightning.metrics import DimensionCorrelation, KNNOverlap, LinearCKA
    from hrsa_lightning.metrics import LinearCKAHeatmap, LinearProbeTransfer, OrthogonalProcrustes
    from hrsa_lightning.metrics import hrsa_metrics

    for name in ("lightning", "transformers", "peft", "omegaconf", "scipy", "matplotlib"):
        assert importlib.util.find_spec(name) is None, name
    x = torch.randn(60, 4)
    metrics = hrsa_metrics(num_classes=2, k=(5,))
    metrics.update(x, 2 * x, (x[:, 0] > 0).long())
    assert abs(metrics.compute()["cka"].item() - 1) < 1e-6
"""


def requirements(names: list[str]) -> set[str]:
    """Distributions that some distributions need, without their extras."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name in found:
            continue
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        names += [
            re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needed if "extra" not in need
        ]
    return found


def test_bare_import(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for name in requirements(["torch", "torchmetrics"]):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            link = site / top
            if top != "__pycache__" and not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    package = site / "hrsa_lightning"
    package.symlink_to(Path(hrsa_lightning.__file__).parent)
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n" + textwrap.dedent(BARE)
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr

"""`functional` and `metrics` stand on torch and torchmetrics alone."""

import subprocess
import sys
import textwrap

BARE = """
    import sys

    class Blocked:
        names = {
            "lightning", "pytorch_lightning", "transformers", "peft", "omegaconf", "scipy",
            "sklearn", "faiss", "datasets", "safetensors", "tensorboard", "matplotlib",
        }

        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in self.names:
                raise ModuleNotFoundError(name, name=name)

    sys.meta_path.insert(0, Blocked())
    import torch
    from hrsa_lightning.functional import linear_cka, linear_cka_heatmap, orthogonal_procrustes
    from hrsa_lightning.functional import dimension_correlation, knn_overlap, linear_probe_transfer
    from hrsa_lightning.metrics import DimensionCorrelation, KNNOverlap, LinearCKA
    from hrsa_lightning.metrics import LinearCKAHeatmap, LinearProbeTransfer, OrthogonalProcrustes
    from hrsa_lightning.metrics import hrsa_metrics

    x = torch.randn(60, 4)
    metrics = hrsa_metrics(num_classes=2, k=(5,))
    metrics.update(x, 2 * x, (x[:, 0] > 0).long())
    assert abs(metrics.compute()["cka"].item() - 1) < 1e-6
    loaded = Blocked.names & {name.split(".")[0] for name in sys.modules}
    assert not loaded, loaded
"""


def test_bare_import() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", textwrap.dedent(BARE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr

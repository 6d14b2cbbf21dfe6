"""The example notebook in a fresh kernel: what a reader sees under each cell."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "similarity.ipynb"


# What jupyter_client says of its own event loop and ports.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_figures_are_pictures_and_a_fit_shows_its_progress(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # which a kernel chooses
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    shown = {
        cell.source.splitlines()[-1]: cell.outputs for cell in notebook.cells if "outputs" in cell
    }
    for last, outputs in shown.items():
        if "plot(" in last or "_figure(" in last:
            assert sizes(outputs), last
            assert all(min(size) > 150 for size in sizes(outputs))
            assert not [o for o in outputs if o.output_type == "error"]
    assert sum(len(sizes(outputs)) for outputs in shown.values()) == 3, "each figure once"
    (progress,) = (outputs for last, outputs in shown.items() if last.startswith("trainer.fit"))
    texts = "".join(output.get("text", "") for output in progress)
    assert "Epoch 2" in texts
    assert "cka" in texts, "the metric beside the bar"
    assert not list(tmp_path.iterdir()), "nothing is left in the reader's folder"


def sizes(outputs):
    """Width and height of each PNG among the outputs of a cell."""
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]

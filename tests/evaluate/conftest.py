import pytest

from tests.evaluate.runs import make_run


@pytest.fixture(scope="package")
def runs(tmp_path_factory):
    """Two seeds of base, rlvr and a seed control."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "backbones").mkdir()
    arms = ("base", "rlvr", "base_seed2")
    return [
        make_run(folder / name, folder / "backbones", arms, seed=seed)
        for name, seed in [("first", 1), ("second", 2)]
    ]

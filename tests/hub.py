"""Local folders in the place of the hub: data sets with documented columns, tiny backbones."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from hrsa_lightning.fetch import __main__ as fetching


def replace_hub(monkeypatch, folder: Path) -> None:
    """Take every data set and model of the hub from `folder/OWNER/NAME`."""
    import datasets

    build = datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda path, **options: build(str(folder / path), **options),
    )

    def download(name: str, revision: str | None, target: Path, patterns: Sequence[str]) -> None:
        shutil.copytree(folder / name, target)

    def repo_info(self, name, revision=None, repo_type=None):
        class Info:
            sha = revision or "0123456789abcdef"
            card_data = type("Card", (), {"license": "apache-2.0"})

        assert (folder / name).is_dir()
        return Info

    monkeypatch.setattr(fetching, "download", download)
    monkeypatch.setattr(HfApi, "repo_info", repo_info)


def make_dataset(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    files: Mapping[str, str] | None = None,
    split: str = "train",
) -> Path:
    """A data set's folder: parquet files, and a card that says which are of which configuration.

    Args:
        folder: Where to.
        rows: The same in every file.
        files: Configuration to file; the default is one file of a `default` configuration.
        split: That they are of.
    """
    import datasets

    files = files or {"default": f"data/{split}-00000-of-00001.parquet"}
    lines = ["---", "configs:"]
    for config, name in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list([dict(row) for row in rows]).to_parquet(folder / name)
        lines += [f"- config_name: {config}", "  data_files:", f"  - split: {split}"]
        lines += [f"    path: {name.replace('00000-of-00001', '*')}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder

"""Open and check files of contrastive pairs. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

from hrsa_lightning.data.problems import Problems
from hrsa_lightning.data.records import check_exists
from hrsa_lightning.data.sampling import ContrastiveDataset, GlobalBatchSampler
from hrsa_lightning.data.sources import JsonlPairs, PairSource
from hrsa_lightning.data.tables import DatasetPairs, load_hub_table, load_table
from hrsa_lightning.errors import DataError

HUB_PREFIX = "hub:"


def read_pairs(paths: Sequence[str | Path | PairSource]) -> list[PairSource]:
    """Open and check sources of contrastive pairs; each is a source of its own for batching.

    Args:
        paths: Each one a `.jsonl` file; or, with the `datasets` package, a `.parquet` or `.json`
            file, a folder that `Dataset.save_to_disk` wrote, or a data set of the Hugging Face hub
            as `hub:NAME`, `hub:NAME:CONFIG` and with `@SPLIT` at the end (default `train`). Sources
            that are already open are passed through.

    Returns:
        One source per path, in the order given.

    Raises:
        DataError: One error that names every missing file, bad line and empty source.
    """
    if not paths:
        raise DataError("no file of contrastive pairs is given")
    problems = Problems()
    sources: list[PairSource] = []
    for path in paths:
        if not isinstance(path, str | Path):
            sources.append(path)
            continue
        try:
            source = _open_source(str(path), problems)
        except DataError as error:
            problems.add(str(path), str(error))
        else:
            sources.append(source)
    problems.raise_if_any()
    empty = [source.name for source in sources if not len(source)]
    if empty:
        raise DataError(f"no pairs in {', '.join(empty)}")
    return sources


def _open_source(path: str, problems: Problems) -> PairSource:
    if path.startswith(HUB_PREFIX):
        return DatasetPairs(load_hub_table(path.removeprefix(HUB_PREFIX)), path, problems)
    file = Path(path)
    check_exists(file)
    if file.suffix == ".jsonl":
        return JsonlPairs(file, problems)
    return DatasetPairs(load_table(file), path, problems)


def check_pairs(
    paths: Sequence[str | Path],
    train_group_size: int = 1,
    batch_size: int = 1,
    missing_negatives: str = "error",
    weights: Sequence[float] | None = None,
) -> list[PairSource]:
    """Raise what training on these pairs would raise; for commands, before they load a model.

    Args:
        paths: As in `read_pairs`.
        train_group_size: As in `ContrastiveDataset`.
        batch_size: As in `GlobalBatchSampler`.
        missing_negatives: As in `ContrastiveDataset`.
        weights: As in `GlobalBatchSampler`.

    Returns:
        The open sources, for `ContrastiveDataModule` to use without checking them again.

    Raises:
        DataError: As `read_pairs`, `ContrastiveDataset` and `GlobalBatchSampler` do.
    """
    sources = read_pairs(paths)
    dataset = ContrastiveDataset(sources, train_group_size, missing_negatives=missing_negatives)
    GlobalBatchSampler(dataset.sizes, batch_size, weights=weights)
    return sources

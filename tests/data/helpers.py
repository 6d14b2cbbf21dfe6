"""Small files of pairs, and a tokenizer that needs no vocabulary."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    """One line each: bytes and texts as they are, anything else as JSON."""
    encoded = [
        line
        if isinstance(line, bytes)
        else (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)).encode()
        for line in lines
    ]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def pair(name: str, number: int, num_negatives: int = 4) -> dict[str, object]:
    return {
        "query": ["find it", f"{name} query {number}"],
        "pos": [f"{name} positive {number} {which}" for which in range(2)],
        "neg": [f"{name} negative {number} {which}" for which in range(num_negatives)],
    }


def write_pairs(folder: Path, sizes: dict[str, int], num_negatives: int = 4) -> list[Path]:
    return [
        write_lines(
            folder / f"{name}.jsonl", [pair(name, number, num_negatives) for number in range(size)]
        )
        for name, size in sizes.items()
    ]


@dataclass
class Codes:
    """Tokens of texts: their characters' codes."""

    ids: torch.Tensor
    texts: list[object]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Codes":
        return Codes(self.ids.to(device), self.texts)

    def pin_memory(self) -> "Codes":
        return Codes(self.ids.clone(), [*self.texts, "pinned"])


@dataclass(eq=True)
class CodeTokenizer:
    """Tokenizers of one `shift` are equal; `calls` records what each one was asked."""

    shift: int = 0

    def __post_init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def encode(self, texts: Sequence[str | tuple[str, str]], max_length: int) -> Codes:
        self.calls.append((len(texts), max_length))
        codes = [
            ord(character) + self.shift for text in texts for character in str(text)[:max_length]
        ]
        return Codes(torch.tensor(codes), list(texts))


def replace_builder(monkeypatch, table):
    """Answer `datasets.load_dataset_builder`; returns what it and its builder are asked.

    Args:
        monkeypatch: Of the test.
        table: Makes the table of a name and a split.
    """
    import datasets

    asked = []

    class Builder:
        __module__ = "datasets.packaged_modules.parquet.parquet"

        def __init__(self, path, **options):
            self._name, self._options = path, options

        def download_and_prepare(self):
            pass

        def as_dataset(self, split):
            asked.append((self._name, self._options, split))
            return table(self._name, split)

    monkeypatch.setattr(datasets, "load_dataset_builder", Builder)
    return asked

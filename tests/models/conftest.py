"""Local backbones for the tests of `hrsa_lightning.models`, written once per session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrsa_lightning.models import EmbeddingTokenizer
from tests.tiny import make_backbone, make_tokenizer


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`backbone_folder(family, **options)`: a folder that holds such a backbone."""
    root = tmp_path_factory.mktemp("backbones")
    made: dict[str, Path] = {}

    def folder(family: str = "qwen2", **options: Any) -> Path:
        key = f"{family}{sorted(options.items())}"
        if key not in made:
            made[key] = make_backbone(root / str(len(made)), family, **options)
        return made[key]

    return folder


@pytest.fixture
def tokenizer() -> EmbeddingTokenizer:
    return EmbeddingTokenizer(make_tokenizer())

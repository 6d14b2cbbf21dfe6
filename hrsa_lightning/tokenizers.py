"""Reads the tokenizer of a checkpoint as the checkpoint has it."""

import os
from typing import Any

__all__ = ["read_tokenizer"]

_GENERAL_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})


def read_tokenizer(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a tokenizer of transformers from a folder or the hub.

    Where tokenizer_config.json names no class of its own but the general one, tokenizer.json is
    taken as it is: AutoTokenizer would put the family's rules for splitting words in the place of
    the checkpoint's.

    Args:
        source: Local folder or hub id.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run Python files that come with the tokenizer.

    Returns:
        The tokenizer, in whatever class transformers finds for it.

    Raises:
        OSError: As transformers raises it where files are missing; and likewise ValueError,
            ImportError and KeyError where they are not understood.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    settings = get_tokenizer_config(source, revision=revision)
    general = settings.get("tokenizer_class") in _GENERAL_CLASSES
    loader: Any = PreTrainedTokenizerFast if general else AutoTokenizer
    return loader.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)

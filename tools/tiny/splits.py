"""Deterministic train / test / probe split, by group of sibling synsets or by module."""

import hashlib

SPLIT_SEED = 1016
# Shares of groups held out for the test pairs and for the probe set. Modules are fewer and larger.
_HELD_OUT = {"wordnet": (0.06, 0.05), "stdlib": (0.14, 0.10)}


def unit_hash(text: str) -> float:
    """Map a text to [0, 1), the same on every machine.

    >>> 0.0 <= unit_hash("n00001740") < 1.0
    True
    """
    digest = hashlib.sha256(f"{SPLIT_SEED}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(corpus: str, group: str) -> str:
    """Return `"test"`, `"probe"` or `"train"` for a group of one corpus.

    Args:
        corpus: `"wordnet"` or `"stdlib"`.
        group: key of the synset group, or dotted module name.
    """
    test, probe = _HELD_OUT[corpus]
    position = unit_hash(f"{corpus}:{group}")
    if position < test:
        return "test"
    return "probe" if position < test + probe else "train"


def corpus_of(source: str) -> str:
    """Return the corpus that a source of pairs, or a probe label, is drawn from."""
    return "stdlib" if source == "code" else "wordnet"


def split_of_id(identifier: str) -> str:
    """Return the split that an id `source/group/item` belongs to."""
    source, group, _ = identifier.split("/", 2)
    return split_of(corpus_of(source), group)

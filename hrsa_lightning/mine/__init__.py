"""Hard negatives for contrastive pairs, found with any embedding model."""

from hrsa_lightning.mine.miner import mine
from hrsa_lightning.mine.rules import MiningOptions

__all__ = ["MiningOptions", "mine"]

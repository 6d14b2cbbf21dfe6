"""Hard negatives for contrastive pairs, found with any embedding model."""

from hrsa_lightning.mine.miner import MiningOptions, mine

__all__ = ["MiningOptions", "mine"]

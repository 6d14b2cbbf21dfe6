"""Hard negatives for contrastive pairs, found with any embedding model."""

from hrsa_lightning.mining.miner import mine
from hrsa_lightning.mining.options import MiningOptions

__all__ = ["MiningOptions", "mine"]

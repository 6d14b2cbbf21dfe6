"""LightningModules that train embedding models."""

from hrsa_lightning.modules.alignment import Alignment
from hrsa_lightning.modules.contrastive import ContrastiveModule, PairedContrastiveModule

__all__ = ["Alignment", "ContrastiveModule", "PairedContrastiveModule"]

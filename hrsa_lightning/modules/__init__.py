"""LightningModules that train embedding models."""

from hrsa_lightning.modules.contrastive import ContrastiveModule, PairedContrastiveModule

__all__ = ["ContrastiveModule", "PairedContrastiveModule"]

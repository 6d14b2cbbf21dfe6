"""Contrastive losses: modules that take embeddings, one file each."""

from hrsa_lightning.losses.infonce import InfoNCELoss

__all__ = ["InfoNCELoss"]

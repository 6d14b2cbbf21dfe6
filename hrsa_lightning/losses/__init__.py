"""Contrastive losses: modules that take embeddings, one file each."""

from hrsa_lightning.losses.alignment import AlignmentLoss
from hrsa_lightning.losses.debiased import DebiasedInfoNCELoss
from hrsa_lightning.losses.infonce import InfoNCELoss
from hrsa_lightning.losses.matryoshka import MatryoshkaLoss
from hrsa_lightning.losses.sigreg import SIGRegLoss

__all__ = ["AlignmentLoss", "DebiasedInfoNCELoss", "InfoNCELoss", "MatryoshkaLoss", "SIGRegLoss"]

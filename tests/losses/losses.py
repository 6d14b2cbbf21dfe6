"""Every loss with every option, for tests that go through all of them."""

from torch import nn

from hrsa_lightning.losses import DebiasedInfoNCELoss, InfoNCELoss, MatryoshkaLoss, SIGRegLoss


class Regularized(nn.Module):
    """InfoNCE with the regularizer of the queries added."""

    def __init__(self):
        super().__init__()
        self.loss, self.regularizer = InfoNCELoss(), SIGRegLoss(num_slices=8)

    def forward(self, queries, *others):
        return self.loss(queries, *others) + self.regularizer(queries, 3)


LOSSES = {
    "infonce": InfoNCELoss(),
    "infonce, all options": InfoNCELoss(
        symmetric=True, same_side_negatives=True, false_negative_margin=0.1, hardness=2.0
    ),
    "debiased": DebiasedInfoNCELoss(),
    "matryoshka": MatryoshkaLoss(InfoNCELoss(), [4, 6]),
    "sigreg": Regularized(),
}

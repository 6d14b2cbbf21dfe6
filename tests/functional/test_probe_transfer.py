import math

import numpy as np
import pytest
import torch

from hrsa_lightning.functional import SimilarityWarning, linear_probe_transfer
from hrsa_lightning.functional._inputs import split_halves
from tests.functional.inputs import rotation


def labelled(n: int = 240, d: int = 12, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    centers = 1.5 * torch.randn(3, d, generator=generator)
    labels = torch.randint(3, (n,), generator=generator)
    y = centers[labels] + torch.randn(n, d, generator=generator)
    return y + 0.3 * torch.randn(n, d, generator=generator), y, labels


def ridge_accuracy(
    train: torch.Tensor, test: torch.Tensor, labels: torch.Tensor, judged: torch.Tensor
) -> float:
    linear = pytest.importorskip("sklearn.linear_model")
    rows = train[~judged].double().numpy()
    alpha = 1e-3 * np.sum((rows - rows.mean(0)) ** 2) / rows.shape[1]
    targets = torch.nn.functional.one_hot(labels).double().numpy()
    model = linear.Ridge(alpha=alpha).fit(rows, targets[~judged.numpy()])
    predicted = model.predict(test[judged].double().numpy()).argmax(1)
    return float(np.mean(predicted == labels[judged].numpy()))


@pytest.mark.parametrize("d", [12, 200])
def test_agrees_with_scikit_learn(d: int) -> None:
    x, y, labels = labelled(d=d)
    judged = split_halves(y, None)
    result = linear_probe_transfer(x, y, labels)
    assert result.transfer.item() == pytest.approx(ridge_accuracy(y, x, labels, judged))
    assert result.source.item() == pytest.approx(ridge_accuracy(y, y, labels, judged))
    assert result.ceiling.item() == pytest.approx(ridge_accuracy(x, x, labels, judged))


def test_regression_reports_r2() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x, y, _ = labelled()
    targets = y[:, 0] + 0.1 * torch.randn(240)
    judged = split_halves(y, None)
    rows = y[~judged].double().numpy()
    alpha = 1e-3 * np.sum((rows - rows.mean(0)) ** 2) / rows.shape[1]
    model = linear.Ridge(alpha=alpha).fit(rows, targets[~judged].double().numpy())
    expected = model.score(x[judged].double().numpy(), targets[judged].double().numpy())
    result = linear_probe_transfer(x, y, targets)
    assert result.transfer.item() == pytest.approx(expected, rel=1e-6)


def test_a_rotated_model_keeps_its_ceiling_and_loses_the_transfer() -> None:
    _, y, labels = labelled()
    x = (y.double() @ rotation(12)).float()
    result = linear_probe_transfer(x, y, labels)
    assert result.ceiling.item() == pytest.approx(result.source.item(), abs=0.02)
    assert result.ceiling.item() > 0.9
    assert result.transfer.item() < 0.7


def test_the_same_model_transfers_all() -> None:
    _, y, labels = labelled()
    result = linear_probe_transfer(y, y, labels)
    assert result.transfer.item() == result.source.item() == result.ceiling.item()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_does_not_matter(scale: float) -> None:
    x, y, labels = labelled()
    base = linear_probe_transfer(x, y, labels, y_ids=list(range(240)))
    scaled = linear_probe_transfer(scale * x, scale * y, labels, y_ids=list(range(240)))
    assert [v.item() for v in scaled] == [v.item() for v in base]


def test_training_samples_are_never_tested() -> None:
    """Random labels cannot be predicted, however well the probe fits them."""
    torch.manual_seed(0)
    y = torch.randn(400, 300)
    labels = torch.randint(2, (400,))
    result = linear_probe_transfer(y, y, labels, regularization=1e-9)
    assert result.source.item() == pytest.approx(0.5, abs=0.12)


def test_non_finite_input_gives_nan_and_one_warning() -> None:
    x, y, labels = labelled()
    x[0, 0] = math.nan
    with pytest.warns(SimilarityWarning, match="linear probe transfer is NaN") as caught:
        result = linear_probe_transfer(x, y, labels)
    assert len(caught) == 1
    assert all(math.isnan(value.item()) for value in result)


def test_samples_that_all_fall_into_one_half_give_nan() -> None:
    y = torch.ones(6, 2)
    with pytest.warns(SimilarityWarning, match="all samples fall into one half"):
        result = linear_probe_transfer(torch.randn(6, 2), y, torch.tensor([0, 1] * 3))
    assert math.isnan(result.transfer.item())


def test_errors() -> None:
    x, y, labels = labelled()
    with pytest.raises(ValueError, match=r"`labels` to have shape \(240,\), got \(239,\)"):
        linear_probe_transfer(x, y, labels[1:])
    with pytest.raises(TypeError, match=r"`labels` to be a torch\.Tensor, got list"):
        linear_probe_transfer(x, y, labels.tolist())
    with pytest.raises(ValueError, match="`regularization` to be positive, got 0"):
        linear_probe_transfer(x, y, labels, regularization=0)
    with pytest.raises(ValueError, match="same width"):
        linear_probe_transfer(x[:, 1:], y, labels)

"""Every metric has the invariances that its level is defined by."""

import pytest
import torch
import torchmetrics
from torch import Tensor

from hrsa_lightning import functional as F  # noqa: N812
from hrsa_lightning.metrics import InvarianceProfile, collection, hrsa_metrics, invariance_profile
from hrsa_lightning.similarity.metric_info import EXTRAS, METRICS, info_of, option_of

ROTATED = {"permutation", "isotropic_scaling", "rotation"}
MAPPED = ROTATED | {"anisotropic_scaling", "invertible"}
BY_FEATURE = {"isotropic_scaling", "anisotropic_scaling", "shift"}

# What each value does not see, and the level that this means.
EXPECTED = {
    "cka": ("geometry", ROTATED | {"shift"}),
    "cka_plain": ("geometry", ROTATED | {"shift"}),
    "cka_standardized": ("representation", {"permutation", "shift"} | BY_FEATURE),
    "knn_overlap_10": ("geometry", ROTATED),
    "knn_overlap_50": ("geometry", ROTATED),
    "cknna_10": ("geometry", ROTATED),
    "procrustes_residual": ("geometry", {"permutation", "rotation", "shift"}),
    "procrustes_global_cosine": ("geometry", ROTATED | {"shift"}),
    "procrustes_mean_cosine": ("geometry", ROTATED | {"shift"}),
    "inverse_row_entropy": ("representation", {"permutation", "isotropic_scaling", "shift"}),
    "dimension_correlation": ("representation", BY_FEATURE),
    "dimension_correlation_median": ("representation", BY_FEATURE),
    "predictivity_forward": ("function", MAPPED | {"shift"}),
    "predictivity_backward": ("function", MAPPED | {"shift"}),
    "probe_transfer_accuracy": ("function", {"off_readout"}),
    "probe_ceiling_accuracy": ("function", {"permutation", "rotation", "shift", "off_readout"}),
    "probe_source_accuracy": ("", None),
}

# What table 8 of the paper asks of each level: what must not change a value, and what must.
TABLE_8 = {
    "representation": (set(), {"rotation", "invertible"}),
    "geometry": ({"rotation", "permutation"}, {"anisotropic_scaling", "invertible"}),
    "function": ({"off_readout"}, set()),
}


@pytest.fixture(scope="module")
def profiles() -> dict[str | int, InvarianceProfile]:
    metrics = hrsa_metrics(num_classes=4, extra=EXTRAS)
    found = invariance_profile(metrics, num_samples=400)
    assert isinstance(found, dict)
    return found


def test_every_value_of_the_set_is_claimed(profiles: dict[str, InvarianceProfile]) -> None:
    assert set(profiles) == set(EXPECTED)


def test_every_value_of_the_set_has_a_title_and_an_option(
    profiles: dict[str, InvarianceProfile],
) -> None:
    assert {option_of(key) for key in profiles} == {*METRICS, *EXTRAS}
    assert collection.EXTRAS == EXTRAS


@pytest.mark.parametrize("key", EXPECTED)
def test_values_have_the_level_that_is_claimed(
    key: str, profiles: dict[str, InvarianceProfile]
) -> None:
    profile, (level, kept) = profiles[key], EXPECTED[key]
    assert profile.level == level, profile
    if kept is not None and not key.startswith("probe"):
        assert set(profile.kept) == kept, profile
    elif kept is not None:  # an accuracy moves by single samples
        assert set(profile.kept) >= {"off_readout"}, profile
    asked = {"isotropic_scaling"} if key == "procrustes_residual" else set()
    assert set(profile.breaks) == asked


@pytest.mark.parametrize("key", [key for key, (level, _) in EXPECTED.items() if level])
def test_the_level_that_is_told_has_the_invariances_of_table_8(
    key: str, profiles: dict[str, InvarianceProfile]
) -> None:
    kept, level = set(profiles[key].kept), info_of(key).level
    asked, broken = TABLE_8[level]
    if key.startswith("predictivity"):  # a readout of all directions: it follows invertible maps
        asked = {"invertible"}
    assert level == profiles[key].level
    assert asked <= kept, profiles[key]
    assert not broken & kept, profiles[key]


def test_a_wrong_claim_fails(profiles: dict[str, InvarianceProfile]) -> None:
    for claimed, key in (("representation", "cka"), ("geometry", "dimension_correlation")):
        asked, broken = TABLE_8[claimed]
        kept = set(profiles[key].kept)
        assert not asked <= kept or broken & kept


def rows_cosine(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(x, y).mean()


def gram_cosine(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity((x @ x.mT).flatten(), (y @ y.mT).flatten(), dim=0)


class UserMetric(torchmetrics.Metric):
    """One of a project of its own."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        self.total += torch.nn.functional.cosine_similarity(x, y).sum()
        self.count += len(x)

    def compute(self) -> Tensor:
        return self.total / self.count


def test_metrics_of_your_own() -> None:
    profile = invariance_profile(rows_cosine)
    assert isinstance(profile, InvarianceProfile)
    assert (profile.level, profile.kept) == ("representation", ("isotropic_scaling",))
    assert invariance_profile(UserMetric()).level == "representation"  # type: ignore[union-attr]
    profile = invariance_profile(gram_cosine)
    assert isinstance(profile, InvarianceProfile)
    assert (profile.level, set(profile.kept)) == ("geometry", ROTATED)
    unscaled = invariance_profile(lambda x, y: (torch.pdist(x) - torch.pdist(y)).square().mean())
    assert isinstance(unscaled, InvarianceProfile)
    assert (unscaled.level, unscaled.breaks) == ("geometry", ("isotropic_scaling",))
    assert invariance_profile(lambda x, y: torch.ones(())).level == ""  # type: ignore[union-attr]


def test_functions_of_three_arguments_and_several_values() -> None:
    found = invariance_profile(F.linear_probe_transfer)
    assert isinstance(found, dict)
    assert found["transfer"].level == "function"
    found = invariance_profile(F.orthogonal_procrustes)
    assert isinstance(found, dict)
    assert found["inverse_row_entropy"].level == "representation"
